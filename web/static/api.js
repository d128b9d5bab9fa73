/* The controller's API as this page uses it: three calls, answered by plain data, none throws.
 *
 * Answers: {kind: 'ok', session, vm}   the status
 *          {kind: 'done'}              the ticket was taken, the cookie is set
 *          {kind: 'refused'}           no valid cookie, or the ticket was not taken
 *          {kind: 'missing'}           no such session
 *          {kind: 'trouble', status, detail, hint}   the controller answers, but not with what was asked for
 *          {kind: 'offline'}           no answer at all
 */

const TIMEOUT_MS = 8000;

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
    const { session, vm } = answer.body ?? {};
    if (typeof session?.status !== 'string')
      return { kind: 'trouble', status: answer.status, detail: 'Its answer is not a session\'s status' };
    return { kind: 'ok', session, vm: vm ?? null };
  }

  /* This page is there. Nothing depends on the answer: the status tells all. */
  async heartbeat() {
    await this.#call('/heartbeat', { method: 'POST' });
  }

  /* One-use ticket for a cookie that script cannot read. */
  async exchange(ticket) {
    const answer = await this.#call('/ticket', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ ticket }),
    });
    if (answer.kind === 'ok') return { kind: 'done' };
    const settled = answer.status >= 400 && answer.status < 500 && answer.status !== 429;
    return settled ? { kind: 'refused' } : answer;
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
    const date = Date.parse(response.headers.get('Date') ?? '');
    if (!Number.isNaN(date)) this.#aheadMs = date - Date.now();

    const { status } = response;
    if (response.ok) return { kind: 'ok', status, body };
    if (status === 401 || status === 403) return { kind: 'refused', status };
    if (status === 404 || status === 410) return { kind: 'missing', status };
    return { kind: 'trouble', status, detail: body?.detail ?? body?.title, hint: body?.hint };
  }
}
