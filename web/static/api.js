/* The controller's API as this page uses it: calls that are answered by plain data, none throws.
 *
 * Answers: {kind: 'ok', session, vm, login}   the status
 *          {kind: 'ok', status, body}  of the others
 *          {kind: 'done'}              the ticket was taken, the cookie is set
 *          {kind: 'refused'}           no valid cookie, or the ticket was not taken
 *          {kind: 'missing'}           no such session
 *          {kind: 'trouble', status, detail, hint}   the controller answers, but not with what was asked for
 *          {kind: 'offline'}           no answer at all, or only a proxy's that got none
 */

const TIMEOUT_MS = 8000;
const WAKE_TIMEOUT_MS = 600000; // the status tells meanwhile
const OPEN_TIMEOUT_MS = 65000; // the desktop's browser may have to start first

/* "/api/auth/session/<id>/novnc" -> "/api/auth/session/<id>"; null where the address is not a session's page. */
export function sessionBase(pathname) {
  return /^(\/api\/auth\/session\/[A-Za-z0-9_-]+)\/novnc\/?$/.exec(pathname)?.[1] ?? null;
}

export class Api {
  /* How far the controller's clock is ahead of this one's. Times in answers are the controller's, and a
   * person's clock may be wrong by hours. */
  #aheadMs = 0;

  constructor(base) {
    this.base = base;
  }

  now() {
    return Date.now() + this.#aheadMs;
  }

  websocketUrl() {
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    return `${scheme}://${location.host}${this.base}/novnc/websock`;
  }

  async status() {
    const answer = await this.#call('');
    if (answer.kind !== 'ok') return answer;
    const { session, vm, login } = answer.body ?? {};
    if (typeof session?.status !== 'string')
      return { kind: 'trouble', status: answer.status, detail: 'Its answer is not a session\'s status' };
    return { kind: 'ok', session, vm: vm ?? null, login: login ?? null };
  }

  /* This page is there. Nothing depends on the answer: the status tells all. */
  async heartbeat() {
    await this.#call('/heartbeat', { method: 'POST' });
  }

  /* Somebody looks at this page: a VM that is at rest is brought back. Answered when it is there, or cannot be. */
  wake() {
    return this.#call('/wake', { method: 'POST', signal: AbortSignal.timeout(WAKE_TIMEOUT_MS) });
  }

  cancel() {
    return this.#post('/cancel', { reason: 'cancelled on its page' });
  }

  /* The code that the user carries from the provider to the tool. */
  giveCode(code) {
    return this.#post('/code', { code });
  }

  /* Sends the desktop's browser to the login page. Its address may hold a secret: it stays here for a moment. */
  async openLogin() {
    const answer = await this.#call('/oauth-url');
    if (answer.kind !== 'ok') return answer;
    const { url, words } = answer.body ?? {};
    if (!url) return { kind: 'trouble', status: answer.status, detail: words ?? 'The login tool has given no address yet' };
    return this.#post('/open-url', { url }, OPEN_TIMEOUT_MS);
  }

  /* What the login has come to. */
  credential() {
    return this.#call('/credentials/status');
  }

  /* One-use ticket for a cookie that script cannot read. */
  async exchange(ticket) {
    const answer = await this.#post('/ticket', { ticket });
    if (answer.kind === 'ok') return { kind: 'done' };
    const settled = answer.status >= 400 && answer.status < 500 && answer.status !== 429;
    return settled ? { kind: 'refused' } : answer;
  }

  #post(path, body, timeoutMs = TIMEOUT_MS) {
    const headers = { 'Content-Type': 'application/json' };
    return this.#call(path, { method: 'POST', headers, body: JSON.stringify(body), signal: AbortSignal.timeout(timeoutMs) });
  }

  async #call(path, options = {}) {
    let response;
    let body = null;
    try {
      response = await fetch(this.base + path, {
        cache: 'no-store', credentials: 'same-origin', redirect: 'error',
        signal: AbortSignal.timeout(TIMEOUT_MS), ...options,
      });
      if (response.status !== 204) body = JSON.parse(await response.text());
    } catch (error) {
      if (!response || !(error instanceof SyntaxError)) return { kind: 'offline' };
    }
    // The controller gives its reasons with each error; a proxy before it that had no answer in time has none.
    if ([502, 503, 504].includes(response.status) && !body?.detail && !body?.title) return { kind: 'offline' };
    const date = Date.parse(response.headers.get('Date') ?? '');
    if (!Number.isNaN(date)) this.#aheadMs = date - Date.now();

    const { status } = response;
    if (response.ok) return { kind: 'ok', status, body };
    if (status === 401 || status === 403) return { kind: 'refused', status };
    if (status === 404 || status === 410) return { kind: 'missing', status };
    return { kind: 'trouble', status, detail: body?.detail ?? body?.title, hint: body?.hint };
  }
}
