/* The page of one session, as one loop: ask how things are, show it in words, open the desktop when it can be
 * had, stay until it ends, and begin again.
 *
 *   ticket in the address  ->  cookie  ->  status, once a second  ->  desktop  ->  closed: why?  ->  status ...
 *
 * Nothing here ends without words on the page: see state.js for all of them.
 */

import { Api, sessionBase } from './api.js';
import { Desktop, loadNoVnc } from './desktop.js';
import { CLOSE, backoffMs, isAtRest, isOver, sentence, viewOf } from './state.js';
import { View } from './view.js';

const WATCH_MS = 3000;      // between status questions while the desktop is connected
const WATCH_MISSES = 2;     // unanswered in a row: the picture is frozen, whatever the socket believes
const STEADY_MS = 10000;    // a connection that lasted this long makes up for the failed ones before it
const BOOT_RETRY_MS = 2000; // between attempts while the VM boots
const PICTURE_MS = 2000;    // between looks for a picture
const RELOAD_MS = 5000;
const PAUSE_TRIES = 4;      // after a controller that said it would be back: half a minute, then it is one that does not answer
const HEARTBEAT_MS = 20000; // hidden pages are slowed down to one a minute, which the controller knows

const OWN = { advice: '', command: '', step: null, next: 'poll', retry: false, wake: '' };
const CONNECTED = { ...OWN, state: 'connected', tone: 'good', title: 'The desktop is connected', text: '' };
const NOT_LOADED = {
  ...OWN, state: 'offline', tone: 'bad', retry: true, title: 'A part of the page could not be loaded',
  text: 'The page is loaded again in a moment.',
};
const NOT_A_SESSION = {
  ...OWN, state: 'ended', tone: 'bad', next: 'stop', title: 'This is not the address of a session',
  text: 'Open the link again as it was given.',
};
const BROKEN = {
  ...OWN, state: 'failed', tone: 'bad', next: 'stop', title: 'The page itself has failed',
  text: 'This is a fault of the page, or the browser is too old for it. Reload the page to try again.',
};

class Page {
  #api;
  #view;
  #desktop = null;
  #close = null;    // how the last connection ended
  #failures = 0;    // attempts in a row that brought nothing
  #retryAt = 0;     // the moment of the next attempt
  #ticketRefused = false;
  #finding = '';    // of the network doctor, about a VM whose desktop is connected
  #isWanted = !document.hidden; // somebody has come to see the desktop: a VM that is at rest is woken, once
  #isAtRest = false; // the VM, when last heard of
  #waking = null;   // {asked}, {asked, isAnswered} or {problem}: see viewOfRest()
  #askFailures = 0; // requests in a row to wake it that were not answered
  #askAt = 0;       // the moment from which on it may be asked again
  #wake = () => {}; // ends the pause that is under way
  #look = () => {}; // asks for the status at once while the desktop is connected

  constructor(base, view) {
    this.#api = new Api(base);
    this.#view = view;
    view.onRetry = () => this.#tryNow();
    view.onWake = () => {
      this.#askAt = 0;
      this.#want();
    };
    view.onUse = () => this.#desktop?.focus();
    view.onType = (text) => this.#desktop?.type(text);
    view.onKey = (keysym) => this.#desktop?.press(keysym);
    view.onOpenLogin = () => this.#api.openLogin();
    view.onCode = (code) => this.#api.giveCode(code);
    view.onCancel = async () => {
      const answer = await this.#api.cancel();
      this.#look(); // and the loop says how it ended
      this.#tryNow();
      return answer;
    };
    setInterval(() => this.#tick(), 1000);
    // Moments in which an answer may have become possible: do not sit out a back-off then.
    addEventListener('online', () => this.#tryNow());
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) {
        this.#isWanted = false;
        return;
      }
      this.#want();
      this.#tryNow();
    });
    addEventListener('focus', () => this.#want());
    // A new link to the same session, opened in this tab, changes only the hash, which loads nothing.
    addEventListener('hashchange', () => {
      if (ticketInAddress()) location.reload();
    });
    this.#watchKeyboard();
  }

  async run() {
    await this.#exchangeTicket();
    this.#api.heartbeat();
    const beats = setInterval(() => this.#api.heartbeat(), HEARTBEAT_MS);
    await this.#untilItEnds();
    clearInterval(beats);
  }

  async #untilItEnds() {
    for (let answered = true;;) {
      const wakingBefore = this.#waking;
      const answer = await this.#api.status();
      if (answer.kind === 'ok' && !answered) this.#forgive(); // it is back: connect at once
      answered = answer.kind === 'ok';
      if (answered && answer.vm?.state !== 'running') this.#close = null; // of a VM's earlier life
      if (!answered && this.#failures >= PAUSE_TRIES) this.#close = null;
      this.#isAtRest = answered && isAtRest(answer.vm);
      if (answered && !isOver(answer.session)) this.#attendRest(answer, wakingBefore);

      const view = this.#viewOf(answer);
      this.#show(view, answer);
      if (view.next === 'stop') {
        if (answer.session?.status === 'completed') this.#view.showCredential((await this.#api.credential()).body);
        return;
      }
      if (!answered) await this.#pauseAfterFailure();
      else if (view.next === 'poll') await this.#pause(view.pollMs);
      else if (!(await this.#stayConnected(answer))) return;
    }
  }

  /* A VM that is at rest is woken by who comes to the page, not by a page that is merely open: a tab that was forgotten, or
   * is looked at while an operator puts the VM to rest, keeps nothing from resting. */
  #attendRest({ vm }, wakingBefore) {
    if (this.#isAtRest) {
      if (wakingBefore?.isAnswered) this.#waking = null; // it rests again, or still
      if (this.#isWanted && !this.#waking?.asked && Date.now() >= this.#askAt) this.#askToWake();
    } else if (vm?.state !== 'resuming') {
      this.#isWanted = false;
      this.#waking = null;
      this.#askFailures = 0;
      this.#askAt = 0;
    }
  }

  /* The answer comes when the VM is there; meanwhile the status tells. A status that was asked before the answer is
   * older than it. */
  async #askToWake() {
    const asked = { asked: true };
    this.#isWanted = false;
    this.#waking = asked;
    const answer = await this.#api.wake();
    if (this.#waking !== asked) return; // the status was faster
    if (answer.kind === 'ok') this.#waking = { asked: true, isAnswered: true };
    else this.#waking = ['offline', 'trouble'].includes(answer.kind) ? { problem: answer } : null;
    if (answer.kind === 'offline') {
      this.#isWanted = !document.hidden; // to be asked again, when the controller is back
      this.#askFailures += 1;
      this.#askAt = Date.now() + backoffMs(this.#askFailures, Math.random());
    }
    this.#wake();
  }

  /* Somebody has come. Only the pause between looks at a VM that is at rest ends by that, no back-off. */
  #want() {
    if (this.#desktop || this.#waking?.asked) return;
    this.#isWanted = true;
    if (this.#isAtRest) this.#wake();
  }

  /* The ticket works once, so it leaves the address (and the history) as soon as it has been answered. */
  async #exchangeTicket() {
    const ticket = ticketInAddress();
    if (!ticket) return;
    for (;;) {
      const answer = await this.#api.exchange(ticket);
      if (answer.kind === 'done' || answer.kind === 'refused') {
        // Refused is not the end: a page that is loaded again has its cookie already. The status tells.
        this.#ticketRefused = answer.kind === 'refused';
        history.replaceState(null, '', location.pathname);
        this.#forgive();
        return;
      }
      this.#show(this.#viewOf(answer));
      await this.#pauseAfterFailure();
    }
  }

  /* Opens the desktop and stays until it ends. Return: whether to go on. */
  async #stayConnected(answer) {
    const RFB = await loadNoVnc();
    if (!RFB) {
      this.#retryAt = Date.now() + RELOAD_MS;
      this.#show(NOT_LOADED);
      await this.#pause(RELOAD_MS);
      location.reload();
      return false;
    }
    const desktop = new Desktop(RFB, this.#view.desktop, this.#api.websocketUrl(), () => this.#connected(answer));
    this.#desktop = desktop;
    this.#watch(desktop);
    this.#close = await desktop.closed;
    this.#desktop = null;
    this.#finding = '';
    this.#view.note('');
    delete document.documentElement.dataset.picture;

    if (this.#close.lastedMs >= STEADY_MS) this.#failures = 0;
    this.#retryAt = Date.now() + BOOT_RETRY_MS;
    const view = this.#viewOf(answer);
    if (view.retry) this.#retryAt = Date.now() + this.#backoff();
    this.#show(view);
    return view.next !== 'stop';
  }

  #connected(answer) {
    const isFree = this.#view.hasPanelFocus;
    this.#show(CONNECTED, answer);
    const { canvas } = this.#desktop;
    canvas.setAttribute('role', 'application');
    canvas.setAttribute('aria-label', 'The desktop. Keys go to it; Control, Alt and Shift together leave it.');
    if (isFree) this.#desktop.focus();
    this.#lookForPicture(this.#desktop);
  }

  /* While connected: time left, findings, the session's end; and a controller that is gone although the socket
   * does not know it yet. */
  async #watch(desktop) {
    for (let misses = 0; misses < WATCH_MISSES;) {
      await new Promise((resolve) => {
        this.#look = resolve;
        setTimeout(resolve, WATCH_MS);
      });
      if (desktop !== this.#desktop) return;
      const answer = await this.#api.status();
      if (desktop !== this.#desktop) return;
      misses = answer.kind === 'offline' ? misses + 1 : 0;
      if (this.#viewOf(answer).next === 'stop') break; // and the loop finds the same and says it
      if (answer.kind !== 'ok' || !desktop.connected) continue;
      this.#finding = answer.vm?.reachable === false ? sentence(answer.vm.finding) : '';
      this.#show(CONNECTED, answer);
    }
    desktop.close(CLOSE.NO_REASON_GIVEN);
  }

  #lookForPicture(desktop) {
    if (desktop !== this.#desktop) return;
    const drawn = desktop.hasPicture();
    document.documentElement.dataset.picture = drawn ? 'drawn' : 'black';
    if (this.#finding) this.#view.note(`The network doctor says: ${this.#finding}`);
    else if (drawn) this.#view.note('');
    else this.#view.note('The desktop is connected, but nothing is drawn on it yet. Its browser may still be starting.');
    setTimeout(() => this.#lookForPicture(desktop), PICTURE_MS);
  }

  #viewOf(answer) {
    return viewOf({
      answer, close: this.#close, mayConnect: Date.now() >= this.#retryAt, ticketRefused: this.#ticketRefused,
      wake: this.#waking,
    });
  }

  /* One more attempt failed. Return: how long to wait, in ms. */
  #backoff() {
    this.#failures += 1;
    return backoffMs(this.#failures, Math.random());
  }

  #forgive() {
    this.#failures = 0;
    this.#retryAt = 0;
  }

  #pauseAfterFailure() {
    const ms = this.#backoff();
    this.#retryAt = Date.now() + ms;
    this.#tick();
    return this.#pause(ms);
  }

  #pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #tryNow() {
    this.#retryAt = 0;
    this.#wake();
    this.#tick();
  }

  #show(view, answer = null) {
    this.#view.show(view, answer?.kind === 'ok' ? answer : null);
    this.#tick();
  }

  #tick() {
    this.#view.tick(this.#api.now(), this.#retryAt - Date.now());
  }

  /* noVNC takes every key while its canvas has the focus, Tab too. Ctrl, Alt and Shift held together and let go
   * give the keyboard back: when they are let go, so that the desktop hears of that as well. */
  #watchKeyboard() {
    let leaving = false;
    const onKey = (event) => {
      if (!this.#desktop?.canvas || event.target !== this.#desktop.canvas) return;
      const modifier = ['Control', 'Alt', 'Shift', 'AltGraph', 'Meta'].includes(event.key);
      if (event.type === 'keydown') leaving = modifier && event.ctrlKey && event.altKey && event.shiftKey;
      else if (leaving && !event.ctrlKey && !event.altKey && !event.shiftKey) {
        leaving = false;
        setTimeout(() => this.#view.leaveDesktop());
      }
    };
    addEventListener('keydown', onKey, true);
    addEventListener('keyup', onKey, true);
    const onFocus = () => this.#view.focused(document.activeElement === this.#desktop?.canvas);
    addEventListener('focusin', onFocus);
    addEventListener('focusout', () => setTimeout(onFocus));
  }
}

function ticketInAddress() {
  return new URLSearchParams(location.hash.slice(1)).get('ticket');
}

const view = new View();
const base = sessionBase(location.pathname);
try {
  if (base) await new Page(base, view).run();
  else view.show(NOT_A_SESSION);
} catch (error) {
  view.show(BROKEN);
  throw error; // for the console
}
