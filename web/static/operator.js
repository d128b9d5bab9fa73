/* The controller's API as the dashboard uses it: it only reads, but for its own cookie. None of these throws.
 *
 * Answers: {kind: 'ok', body}, {kind: 'refused', detail, hint} (no credential), {kind: 'trouble', detail, hint},
 *          {kind: 'offline'} (no answer at all)
 */

const TIMEOUT_MS = 15000;
const RETRY_MAX_MS = 15000;

/* The controller's time: a person's clock may be wrong by hours. */
let aheadMs = 0;
export const now = () => Date.now() + aheadMs;

export async function call(path, { method = 'GET', body, as = 'json', timeoutMs = TIMEOUT_MS } = {}) {
  let response;
  let text = '';
  try {
    response = await fetch(path, {
      method, cache: 'no-store', credentials: 'same-origin', redirect: 'error', signal: AbortSignal.timeout(timeoutMs),
      ...(body ? { headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) } : {}),
    });
    const date = Date.parse(response.headers.get('Date') ?? '');
    if (!Number.isNaN(date)) aheadMs = date - Date.now();
    text = await response.text();
    if (response.ok && as === 'text') return { kind: 'ok', body: text };
    const answer = text ? JSON.parse(text) : null;
    if (response.ok) return { kind: 'ok', body: answer };
    const { detail, hint } = answer ?? {};
    return { kind: response.status === 401 || response.status === 403 ? 'refused' : 'trouble', detail, hint };
  } catch (error) {
    if (!response || !(error instanceof SyntaxError)) return { kind: 'offline' };
    return { kind: 'trouble', detail: `It answered HTTP ${response.status} with something else than JSON` };
  }
}

/* The event stream. The browser itself comes back after a connection that broke, with the number of the last event; what
 * was refused, and what it gives up, comes back by this. */
export class Stream {
  #source = null;
  #failures = 0;
  #timer;

  onHello = () => {};   // (reset): connected; reset: what is known is of no use
  onChange = () => {};  // (change)
  onNetwork = () => {};
  onLost = () => {};    // not connected; it is tried again

  open() {
    this.close();
    const source = new EventSource('/api/events/stream');
    const data = (event) => JSON.parse(event.data);
    this.#source = source;
    source.addEventListener('hello', (event) => {
      this.#failures = 0;
      this.onHello(data(event).reset);
    });
    source.addEventListener('change', (event) => this.onChange(data(event)));
    source.addEventListener('network', () => this.onNetwork());
    source.addEventListener('error', () => {
      this.onLost();
      if (source.readyState === EventSource.CLOSED) this.retry();
    });
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  /* Opens it anew, a while later. */
  retry() {
    this.#source?.close();
    this.#failures += 1;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.open(), Math.min(RETRY_MAX_MS, 1000 * 2 ** Math.min(this.#failures, 5)));
  }
}
