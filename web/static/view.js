/* Everything that touches the page's elements. Whatever came from elsewhere goes into textContent, never into
 * markup. */

import {
  STEPS, bootClock, clean, credentialWords, duration, isAtRest, mayCancel, sentence, stateWords, timeLeft, viewOfLogin,
} from './state.js';

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
  #status = null; // {session, vm, login} of the last answer
  #login = null;  // what is shown of the login tool
  #note = '';
  #wasShort = false;

  onRetry = () => {}; // the person asks for an attempt at once
  onWake = () => {};  // the person wants the VM to be woken
  onUse = () => {};   // the person wants the keyboard in the desktop
  onType = () => {};  // (text): to be typed on the desktop
  onKey = () => {};   // (keysym)
  /* Each resolves to api.js's answer. */
  onCancel = async () => ({});
  onOpenLogin = async () => ({});
  onCode = async () => ({}); // (code)

  constructor() {
    $('retry').addEventListener('click', () => this.onRetry());
    $('wake').addEventListener('click', () => this.onWake());
    $('use-desktop').addEventListener('click', () => this.onUse());
    this.#listenToLogin();
    this.#listenToTyping();
    $('steps').append(...STEPS.map((words) => {
      const item = document.createElement('li');
      item.textContent = words;
      return item;
    }));
  }

  #listenToLogin() {
    $('cancel').addEventListener('click', () => {
      $('ask-cancel').returnValue = 'no';
      $('ask-cancel').showModal();
    });
    $('ask-cancel').addEventListener('close', () => {
      if ($('ask-cancel').returnValue === 'yes') this.#tell('Cancelling …', this.onCancel(), 'It is cancelled.');
    });
    $('login-open').addEventListener('click', () => this.#tell('The desktop\'s browser is asked …', this.onOpenLogin(),
      'The login page is open on the desktop.'));
    $('login-form').addEventListener('submit', async (event) => {
      event.preventDefault();
      const code = $('code').value.trim();
      $('code').value = '';
      await this.#tell('The tool gets the code …', this.onCode(code), 'The tool has the code.');
    });
  }

  #listenToTyping() {
    $('typing').addEventListener('submit', (event) => {
      event.preventDefault();
      this.onType($('typed').value);
      $('typed').value = '';
    });
    for (const button of document.querySelectorAll('[data-keysym]'))
      button.addEventListener('click', () => this.onKey(Number(button.dataset.keysym)));
  }

  /* What comes of something that the person asked for. */
  async #tell(meanwhile, promise, done) {
    put($('said'), meanwhile);
    const { kind, detail, hint } = await promise;
    const failed = kind === 'offline' ? 'The controller does not answer. Try again in a moment.'
      : `${sentence(detail, 'The controller refused it.')} ${sentence(hint)}`.trim();
    put($('said'), kind === 'ok' ? done : failed);
  }

  get desktop() {
    return $('desktop');
  }

  /* Whether nothing else of the page has the keyboard than the words that stand in the desktop's place. */
  get hasPanelFocus() {
    return document.activeElement === document.body || $('panel').contains(document.activeElement);
  }

  /* status: {session, vm, login}, or null to keep what is shown of them. */
  show(view, status = null) {
    const { dataset } = document.documentElement;
    const fellAsleep = view.state === 'asleep' && dataset.state !== 'asleep';
    this.#shown = view;
    this.#status = status ?? this.#status;
    const { session, vm, login } = this.#status ?? {};

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
    $('typing').hidden = !connected;
    put($('title'), view.title);
    putOrHide($('text'), view.text);
    putOrHide($('advice'), view.advice);
    putOrHide($('command'), view.command);
    $('actions').hidden = !view.retry;
    putOrHide($('wake'), view.wake);
    // Before the button, not on it: the next key of somebody who is typing wakes nothing.
    if (fellAsleep && document.activeElement === document.body) $('title').focus();
    this.#showSteps(view.step);
    this.#showConsole(view, vm);
    const isAway = view.next === 'stop' || ['asleep', 'waking'].includes(view.state); // and its tool with it
    this.#showLogin(isAway ? null : viewOfLogin(session, login));
    const cancellable = view.next !== 'stop' && mayCancel(session);
    $('cancel').hidden = !cancellable;
    if (!cancellable && $('ask-cancel').open) $('ask-cancel').close('no');
    this.#speak();
  }

  /* A completed login: what has come of it. */
  showCredential(credential) {
    const words = credentialWords(credential);
    if (words) putOrHide($('text'), `${this.#shown.text} ${words}`);
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
    const isOnItsWay = ['booting', 'waking'].includes(this.#shown?.state) && !isAtRest(vm);
    putOrHide($('clock'), isOnItsWay ? bootClock(vm, nowMs) : '');
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

  #showLogin(login) {
    this.#login = login;
    $('login').hidden = !login;
    if (!login) return;
    put($('login-words'), login.words);
    put($('login-code'), login.code);
    $('login-code-line').hidden = !login.code;
    putOrHide($('login-open'), login.open);
    $('login-form').hidden = !login.takesCode;
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
    if (this.#login) parts.push(this.#login.words, this.#login.code && `Your code: ${this.#login.code}`);
    if (this.#wasShort) parts.push('Less than a minute is left.');
    put($('live'), parts.filter(Boolean).join(' '));
  }
}
