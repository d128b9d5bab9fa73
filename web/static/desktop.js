/* One connection to the desktop: a WebSocket of our own, handed to noVNC.
 *
 * Of our own, because only its close event has the code and the reason: noVNC's `disconnect` says clean or not,
 * and says clean after a 1006.
 */

const HANDSHAKE_MS = 20000; // from the attempt to the desktop's first screen size
const SAMPLE = 32;          // pixels a side of the small copy in which we look for a picture
const CLOSED_BY_NOVNC = 1005; // it closes without a code when it does not understand what comes

/* noVNC is loaded once, at the start; null when a part of it could not be had (only a reload helps then: a
 * module that failed to load stays failed). */
const loading = import('/static/novnc/core/rfb.js').then((module) => module.default, () => null);
export const loadNoVnc = () => loading;

export class Desktop {
  #socket;
  #rfb;
  #host; // of this connection alone: an old one that still closes must not touch its successor's canvas
  #timer;
  #finish;
  #since = 0;
  #problem = null;
  #problemReason = '';
  #sample = null;

  /* Resolves once, to {code, reason, problem, lastedMs}: see viewOfClose(). lastedMs is 0 if it never connected. */
  closed = new Promise((resolve) => { this.#finish = resolve; });

  /* element: where the canvas goes. onConnect: called when the desktop is there. */
  constructor(RFB, element, url, onConnect) {
    this.#host = element.appendChild(document.createElement('div'));
    this.#socket = new WebSocket(url, ['binary']);
    // A turn later: noVNC hears of the close after us, and says then whether it was content.
    this.#socket.addEventListener('close', (event) => setTimeout(() => this.#end(event.code, event.reason)));
    this.#timer = setTimeout(() => this.#giveUp('silent'), HANDSHAKE_MS);

    this.#rfb = new RFB(this.#host, this.#socket, { shared: true });
    this.#rfb.scaleViewport = true;
    this.#rfb.background = 'transparent';
    this.#rfb.addEventListener('connect', () => {
      clearTimeout(this.#timer);
      this.#since = performance.now();
      onConnect(this);
    });
    this.#rfb.addEventListener('credentialsrequired', () => this.#giveUp('password'));
    this.#rfb.addEventListener('securityfailure', (event) => this.#giveUp('protocol', event.detail.reason));
    this.#rfb.addEventListener('disconnect', (event) => {
      if (!event.detail.clean) this.#problem ??= 'unclean';
    });
  }

  get canvas() {
    return this.#host.querySelector('canvas');
  }

  get connected() {
    return this.#since > 0;
  }

  focus() {
    this.#rfb.focus({ preventScroll: true });
  }

  /* Presses and lets go one key. Source: X11's keysymdef.h: Latin 1 is itself, other characters are above 0x1000000. */
  press(keysym) {
    this.#rfb.sendKey(keysym, null);
  }

  /* For who has no keyboard that the canvas could hear, as on a phone. */
  type(text) {
    for (const letter of text) {
      const code = letter.codePointAt(0);
      this.press(code < 0x100 ? code : 0x1000000 + code);
    }
  }

  /* Whether something is drawn: a screen that is black all over looks like a fault, so the page says so. */
  hasPicture() {
    const { canvas } = this;
    if (!canvas?.width || !canvas.height) return false;
    if (!this.#sample) {
      const copy = Object.assign(document.createElement('canvas'), { width: SAMPLE, height: SAMPLE });
      this.#sample = copy.getContext('2d', { willReadFrequently: true });
    }
    this.#sample.drawImage(canvas, 0, 0, SAMPLE, SAMPLE);
    const { data } = this.#sample.getImageData(0, 0, SAMPLE, SAMPLE);
    return data.some((value, index) => index % 4 !== 3 && value > 8);
  }

  /* Ends the connection from this side, at once: a dead peer would not answer a closing handshake. code: what
   * `closed` then tells. */
  close(code = 1000) {
    if (this.#socket.readyState < WebSocket.CLOSING) this.#rfb.disconnect();
    this.#end(code, '');
  }

  #giveUp(problem, reason = '') {
    this.#problem = problem;
    this.#problemReason = reason;
    this.close();
  }

  #end(code, reason) {
    clearTimeout(this.#timer);
    this.#host.remove();
    let problem = this.#problem;
    if (problem === 'unclean') problem = code === CLOSED_BY_NOVNC ? 'protocol' : null;
    this.#finish({
      code, problem, reason: this.#problemReason || reason,
      lastedMs: this.#since ? performance.now() - this.#since : 0,
    });
  }
}
