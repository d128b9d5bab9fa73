/* Everything that touches the page's elements. Whatever came from elsewhere goes into textContent, never into
 * markup. */

import { STEPS, bootClock, clean, duration, stateWords, timeLeft } from './state.js';

const $ = (id) => document.getElementById(id);

/* Writes only what changed: a live region is read aloud again when it is written again. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function putOrHide(element, text) {
  put(element, text);
  element.hidden = !text;
}

function fact(id, text) {
  put($(id), text);
  $(id).parentElement.hidden = !text;
}

export class View {
  #shown = null;  // the view on the page
  #status = null; // {session, vm} of the last answer
  #note = '';
  #wasShort = false;

  onRetry = () => {}; // the person asks for an attempt at once
  onUse = () => {};   // the person wants the keyboard in the desktop

  constructor() {
    $('retry').addEventListener('click', () => this.onRetry());
    $('use-desktop').addEventListener('click', () => this.onUse());
    $('steps').append(...STEPS.map((words) => {
      const item = document.createElement('li');
      item.textContent = words;
      return item;
    }));
  }

  get desktop() {
    return $('desktop');
  }

  /* status: {session, vm}, or null to keep what is shown of them. */
  show(view, status = null) {
    const { dataset } = document.documentElement;
    this.#shown = view;
    this.#status = status ?? this.#status;
    const { session, vm } = this.#status ?? {};

    dataset.state = view.state;
    dataset.tone = view.tone;
    put($('state-words'), stateWords(view.state));
    const user = clean(session?.user, 64);
    fact('fact-user', user);
    fact('fact-provider', clean(session?.provider, 32));
    fact('fact-vm', clean(vm?.id ?? session?.vm_id, 64));
    document.title = `${stateWords(view.state)}: desktop${user ? ` of ${user}` : ''}`;

    const connected = view.state === 'connected';
    $('stage').hidden = connected;
    $('desktop').hidden = !connected;
    $('controls').hidden = !connected;
    put($('title'), view.title);
    putOrHide($('text'), view.text);
    putOrHide($('advice'), view.advice);
    putOrHide($('command'), view.command);
    $('actions').hidden = !view.retry;
    this.#showSteps(view.step);
    this.#showConsole(view, vm);
    this.#speak();
  }

  /* A sentence above the desktop, '' for none: it is there, and something about it should be known. */
  note(text) {
    if (text === this.#note) return;
    this.#note = text;
    putOrHide($('note'), text);
    this.#speak();
  }

  /* Marks whether keys go to the desktop. */
  focused(inDesktop) {
    document.documentElement.dataset.keys = inDesktop ? 'desktop' : 'page';
  }

  leaveDesktop() {
    this.focused(false); // the button is shown only then
    $('use-desktop').focus();
  }

  /* Once a second. nowMs: the controller's time. retryInMs: time to the next attempt. */
  tick(nowMs, retryInMs) {
    const { session, vm } = this.#status ?? {};
    const booting = this.#shown?.state === 'booting' && vm?.state !== 'hibernated';
    putOrHide($('clock'), booting ? bootClock(vm, nowMs) : '');
    put($('countdown'), retryInMs > 0 ? `Trying again in ${duration(Math.max(1000, retryInMs))}` : 'Trying …');

    const over = this.#shown?.next === 'stop';
    const left = over ? null : timeLeft(session, nowMs);
    fact('fact-time', left?.words ?? '');
    const isShort = left !== null && left.ms < 60000;
    document.documentElement.toggleAttribute('data-hurry', isShort);
    if (isShort !== this.#wasShort) {
      this.#wasShort = isShort;
      this.#speak();
    }
  }

  #showSteps(step) {
    $('steps').hidden = step === null;
    [...$('steps').children].forEach((item, index) => {
      item.className = index < step ? 'done' : '';
      if (index === step) item.setAttribute('aria-current', 'step');
      else item.removeAttribute('aria-current');
    });
  }

  /* While something starts it shows that it moves; where it failed it is often the cause. */
  #showConsole(view, vm) {
    const line = ['booting', 'failed'].includes(view.state) ? clean(vm?.console_line, 240) : '';
    put($('console-line'), line);
    $('console').hidden = !line;
  }

  /* What a screen reader says: the words that changed, without the seconds that run. */
  #speak() {
    const view = this.#shown;
    const parts = view.state === 'connected'
      ? ['The desktop is connected.', this.#note]
      : [`${view.title}.`, view.text, view.advice, view.command];
    if (this.#wasShort) parts.push('Less than a minute is left.');
    put($('live'), parts.filter(Boolean).join(' '));
  }
}
