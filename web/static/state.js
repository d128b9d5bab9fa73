/* What a person is told: pure functions from what the controller said to words. No DOM, no network, no clock
 * of its own, so that tests/e2e/state.test.mjs can try every case under node.
 *
 * A view is plain data that view.js shows:
 *   state    what documentElement.dataset.state becomes, one of:
 *            loading connecting booting asleep waking connected reconnecting offline failed ended link
 *   tone     busy | good | bad | done: the colour and the mark, never the only carrier of a meaning
 *   title, text, advice    sentences; command: a command to copy, shown as code
 *   step     how far a start has come, an index into STEPS; null: no start is under way
 *   next     connect: open the desktop now; poll: ask for the status again after pollMs; stop: nothing follows
 *   retry    whether a back-off runs, with its button and countdown
 *   wake     the words on the button that wakes the VM; empty: there is nothing to wake
 */

export const STEPS = ['Make the VM', 'Start its system and desktop', 'Connect to the desktop'];

/* WebSocket close codes of the relay. Source: INTERFACE.md, "WebSocket endings that a browser can see". */
export const CLOSE = {
  NO_REASON_GIVEN: 1006, // made by the browser itself: the connection was cut
  VM_LOST: 1011,
  AWAY_FOR_A_WHILE: 1012, // the controller restarts, or the VM is put to rest: the reason says which
  STILL_BOOTING: 1013,
  UNREACHABLE: 1014,
  NO_CREDENTIAL: 4401,
  NO_SUCH_SESSION: 4404,
  TIMED_OUT: 4408,
};

const BACKOFF_FIRST_MS = 1000;
const BACKOFF_MAX_MS = 15000;
const POLL_MS = 1000;
const POLL_SLOW_MS = 5000; // where only an operator can change something
const TEXT_MAX = 400;      // of what others wrote; a reason has at most 400 bytes (VM_REASON_MAX)

const BASE = {
  tone: 'busy', text: '', advice: '', command: '', step: null, next: 'poll', pollMs: POLL_MS, retry: false,
  wake: '',
};

/* Text that others wrote (a guest's console above all): without terminal sequences, control characters and
 * the marks that reorder text, and not longer than a person reads. It still goes into textContent only. */
export function clean(text, max = TEXT_MAX) {
  if (typeof text !== 'string') return '';
  const plain = text.slice(0, 16 * max)
    .replace(/\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b./g, '')
    .replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, ' ')
    .replace(/[\p{Cf}\p{Co}\p{Cs}]/gu, '')
    .trim();
  const letters = [...plain];
  return letters.length > max ? letters.slice(0, max - 1).join('') + '…' : plain;
}

/* The same as a sentence, or the words to use where nothing was said. */
export function sentence(text, otherwise = '') {
  const said = clean(text);
  if (!said) return otherwise;
  const start = said[0].toUpperCase() + said.slice(1);
  return /[.!?…]$/.test(start) ? start : start + '.';
}

/* 75000 -> "1 min 15 s", 120000 -> "2 min" */
export function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  const parts = s < 3600 ? [[Math.floor(s / 60), 'min'], [s % 60, 's']]
    : [[Math.floor(s / 3600), 'h'], [Math.floor((s % 3600) / 60), 'min']];
  return parts.filter(([count]) => count).map(([count, unit]) => `${count} ${unit}`).join(' ') || '0 s';
}

/* How long to wait before attempt n, which follows n failed ones: 1 s doubling to 15 s, a fifth of it by
 * chance, so that all pages do not come back to a restarted controller in the same moment.
 * random: 0 to 1. */
export function backoffMs(failures, random) {
  const ms = BACKOFF_FIRST_MS * 2 ** Math.min(Math.max(failures, 1) - 1, 10);
  return Math.round(Math.max(BACKOFF_FIRST_MS, Math.min(ms, BACKOFF_MAX_MS) * (1 - random / 5)));
}

/* How far a boot has come in time, in words; empty where nothing is known. nowMs: the controller's time. */
export function bootClock(vm, nowMs) {
  const since = Date.parse(vm?.state_since ?? '');
  if (Number.isNaN(since)) return '';
  const spent = `${duration(nowMs - since)} so far`;
  const deadline = Date.parse(vm.boot_deadline_at ?? '');
  if (Number.isNaN(deadline)) return `${spent}.`;
  if (nowMs > deadline) return `${spent}, longer than it may take. The reason comes in a moment.`;
  return `${spent}; it may take up to ${duration(deadline - since)}.`;
}

/* Time left in the session: {words, ms}, or null where it has no limit. */
export function timeLeft(session, nowMs) {
  const end = Date.parse(session?.timeout_at ?? '');
  if (Number.isNaN(end)) return null;
  return { ms: end - nowMs, words: end > nowMs ? duration(end - nowMs) : 'none' };
}

/* The words for the state in the bar. */
export function stateWords(state) {
  return {
    loading: 'Loading', connecting: 'Connecting', booting: 'Starting', asleep: 'Asleep', waking: 'Waking up',
    connected: 'Connected',
    reconnecting: 'Connecting again', offline: 'No answer', failed: 'Failed', ended: 'Ended', link: 'No access',
  }[state] ?? state;
}

/* Only what cannot surprise in a shell becomes part of a command that a person copies. */
function word(text, pattern, placeholder) {
  return typeof text === 'string' && pattern.test(text) ? text : placeholder;
}
const vmCommand = (verb, vm) => `mctl ${verb} ${word(vm?.id, /^vm-[0-9a-f-]{36}$/, 'VM-ID')}`;
const startCommand = (session) => 'mctl auth start'
  + ` --user ${word(session?.user, /^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$/, 'USER')}`
  + ` --provider ${word(session?.provider, /^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$/, 'PROVIDER')}`;

function ended(title, text, session, more = {}) {
  return {
    ...BASE, state: 'ended', tone: 'done', next: 'stop', title, text,
    advice: 'To begin again, ask for a new session:', command: startCommand(session), ...more,
  };
}

function noAccess(title, text, session) {
  return {
    ...BASE, state: 'link', tone: 'bad', next: 'stop', title, text,
    advice: 'Ask for a new one:', command: startCommand(session),
  };
}

export const isOver = (session) => ['completed', 'failed', 'cancelled', 'timeout'].includes(session?.status);

/* Whether the session can be cancelled. */
export const mayCancel = (session) => typeof session?.status === 'string' && !isOver(session);

/* What the login tool in the VM says and takes, or null where none is at work. open: the words on the button that sends the
 * desktop's browser to the login page; empty: there is no such page yet. */
export function viewOfLogin(session, login) {
  if (!login || isOver(session)) return null;
  const hasPage = session.status === 'authenticating';
  return {
    words: sentence(login.words, 'The login tool is at work.'),
    code: clean(login.user_code, 40),
    open: !hasPage ? '' : login.opened ? 'Open the login page again' : 'Open the login page on the desktop',
    takesCode: login.takes_code === true,
  };
}

/* What a completed login has come to. credential: the answer's body, or null where it is not known. */
export function credentialWords(credential) {
  if (!credential?.stored) return '';
  return credential.in_vm ? `Your CLI VM ${clean(credential.in_vm, 40)} is logged in now.`
    : 'Your CLI VM is logged in as soon as it runs.';
}

/* The session's own end, or null while it lives. */
function viewOfEnd(session) {
  switch (session.status) {
  case 'completed':
    return ended('The login is complete', sentence(session.reason, 'You can close this page.'), session,
      { tone: 'good', advice: '', command: '' });
  case 'cancelled':
    return ended('The session was cancelled', sentence(session.reason), session);
  case 'timeout':
    return ended('The session timed out', sentence(session.reason, 'Its time is over.'), session);
  case 'failed':
    return ended('The session failed', sentence(session.reason, 'The controller gave no reason.'), session,
      { state: 'failed', tone: 'bad' });
  default:
    return null;
  }
}

export const isAtRest = (vm) => ['hibernating', 'hibernated'].includes(vm?.state);

/* A VM at rest. It wakes when somebody wants its desktop, not because a page is open: session.js decides that.
 * wake: {asked} while the controller has been asked to, {problem} with the answer that failed, or null. */
function viewOfRest(session, vm, wake) {
  const view = { ...BASE, state: 'asleep', tone: 'done', title: 'The desktop is asleep' };
  if (wake?.asked || vm.state === 'resuming')
    return {
      ...view, state: 'waking', tone: 'busy', title: 'The desktop wakes up',
      text: 'The page shows it as soon as it is there.',
    };
  if (wake?.problem?.kind === 'offline')
    return {
      ...view, tone: 'bad', title: 'The desktop is not awake yet', text: 'The controller did not answer.',
      advice: 'The page asks again in a moment.', wake: 'Try again',
    };
  if (wake?.problem)
    return {
      ...view, tone: 'bad', title: 'The desktop cannot be woken',
      text: sentence(wake.problem.detail, 'The controller gave no reason.'),
      advice: sentence(wake.problem.hint, 'An operator can read what happened:'),
      command: wake.problem.hint ? '' : vmCommand('vm why', vm), wake: 'Try again',
    };
  const text = vm.state === 'hibernating' ? 'Its memory is being saved.' : sentence(vm.reason);
  const limit = session.timeout_at ? ' The session\'s time runs on meanwhile.' : '';
  return {
    ...view, text: `It was put to rest. ${text}`.trim(),
    advice: `It wakes when you come back to this page.${limit}`, wake: 'Wake it up',
  };
}

function viewOfVm(session, vm, wake) {
  const starting = { ...BASE, state: 'booting', title: 'The desktop is starting' };
  if (!vm) {
    if (!session.vm_id)
      return { ...starting, step: 0, text: 'A VM is being made for this session.' };
    return {
      ...BASE, state: 'failed', tone: 'bad', title: 'The VM is gone', pollMs: POLL_SLOW_MS,
      text: sentence(session.reason, 'The session\'s VM does not exist any more.'),
      advice: 'An operator can read what happened:', command: vmCommand('vm why', { id: session.vm_id }),
    };
  }
  switch (vm.state) {
  case 'creating':
    return { ...starting, step: 0, text: sentence(vm.reason, 'A VM is being made for this session.') };
  case 'booting':
    return {
      ...starting, step: 1,
      text: sentence(vm.reason, 'The VM runs; its system and its desktop start. This takes about half a minute.'),
    };
  case 'running':
    return {
      ...starting, state: 'connecting', step: 2, next: 'connect', title: 'Connecting to the desktop',
      text: 'The VM is up.',
    };
  case 'resuming':
  case 'hibernating':
  case 'hibernated':
    return viewOfRest(session, vm, wake);
  case 'stopping':
    return { ...BASE, state: 'ended', tone: 'done', title: 'The VM is being stopped', text: sentence(vm.reason) };
  case 'stopped':
    return ended('The VM was stopped', sentence(vm.reason), session, { next: 'poll', pollMs: POLL_SLOW_MS });
  case 'failed':
    return {
      ...BASE, state: 'failed', tone: 'bad', title: 'The VM failed', pollMs: POLL_SLOW_MS,
      text: sentence(vm.reason, 'The controller gave no reason.'),
      advice: 'An operator can read the whole story:', command: vmCommand('vm why', vm),
    };
  default:
    return { ...starting, title: `The VM is ${clean(vm.state, 40)}`, text: sentence(vm.reason) };
  }
}

/* The controller ended the connection for a while. Its status tells more, as soon as it can be had. */
function viewOfPause(close) {
  return {
    ...BASE, state: 'reconnecting', retry: true, title: 'The desktop is away for a moment',
    text: sentence(close.reason, 'The controller restarts. The page comes back by itself.'),
  };
}

/* What the end of a connection means while the VM is said to be running.
 * close: {code, reason, problem}; problem is what desktop.js itself saw: silent | password | protocol, or null. */
export function viewOfClose(close, session, vm) {
  const again = { ...BASE, state: 'reconnecting', tone: 'bad', retry: true, next: 'poll' };
  const finding = vm?.finding ? sentence(`The network doctor says: ${clean(vm.finding)}`) : '';
  const withFinding = (text) => (finding ? `${text} ${finding}` : text);

  switch (close.problem) {
  case 'silent':
    return {
      ...again, title: 'The desktop does not answer',
      text: withFinding('The connection is there, but the desktop has not said anything on it.'),
      advice: 'The page tries again by itself. If this stays, an operator can look for the cause:',
      command: vmCommand('doctor --vm', vm),
    };
  case 'password':
    return {
      ...again, title: 'The desktop asks for a password',
      text: 'Desktops here have none, so this VM\'s image is not what it should be.',
      advice: 'An operator can check the image:', command: 'mctl image list',
    };
  case 'protocol':
    return {
      ...again, title: 'The desktop cannot be shown',
      text: sentence(close.reason, 'It does not speak the protocol that this page expects.'),
      advice: 'The page tries again by itself. If this stays, an operator can look at the VM:',
      command: vmCommand('vm console', vm),
    };
  }
  switch (close.code) {
  case CLOSE.STILL_BOOTING:
    return {
      ...again, state: 'booting', tone: 'busy', step: 1, retry: false, title: 'The desktop is starting',
      text: sentence(close.reason, 'The VM runs; its desktop does not answer yet.'),
    };
  case CLOSE.UNREACHABLE:
    return {
      ...again, title: 'The desktop cannot be reached',
      text: withFinding(sentence(close.reason, 'The VM, or the desktop in it, does not answer the controller.')),
      advice: 'The page tries again by itself. If this stays, an operator can look for the cause:',
      command: vmCommand('doctor --vm', vm),
    };
  case CLOSE.VM_LOST:
    return {
      ...again, title: 'The VM was lost',
      text: withFinding(sentence(close.reason, 'The connection to its desktop broke.')),
      advice: 'The page tries again as long as the session lives. An operator can read what happened:',
      command: vmCommand('vm why', vm),
    };
  case CLOSE.AWAY_FOR_A_WHILE:
    return viewOfPause(close);
  case CLOSE.NO_CREDENTIAL:
    return noAccess('The page has no access any more', sentence(close.reason, 'What this link gave has run out.'),
      session);
  case CLOSE.NO_SUCH_SESSION:
    return ended('There is no such session', sentence(close.reason, 'It does not exist, or it is not yours.'), session);
  case CLOSE.TIMED_OUT:
    return ended('The session timed out', sentence(close.reason, 'Its time is over.'), session);
  case CLOSE.NO_REASON_GIVEN:
    return {
      ...again, title: 'The connection broke', text: 'It was cut on the way, without a word from the controller.',
      advice: 'The page connects again by itself.',
    };
  default:
    return {
      ...again, title: 'The desktop closed the connection',
      text: `${sentence(close.reason, 'It gave no reason.')} (Code ${Number(close.code)}.)`,
      advice: 'The page connects again by itself.',
    };
  }
}

/* What an answer without a status means. close: how the last connection to the desktop ended, or null. */
function viewOfProblem(answer, close, ticketRefused) {
  if (answer.kind === 'offline' && close?.code === CLOSE.AWAY_FOR_A_WHILE) return viewOfPause(close);
  switch (answer.kind) {
  case 'refused':
    return ticketRefused
      ? noAccess('This link does not open the desktop', 'This link has been used or is too old.')
      : noAccess('This page needs a link', 'Its address alone opens nothing: the link that was given for it '
        + 'lets one browser in, once.');
  case 'missing':
    return ended('There is no such session', 'It does not exist any more, or it is not yours.');
  case 'trouble':
    return {
      ...BASE, state: 'offline', tone: 'bad', retry: true, title: 'The controller has a problem',
      text: sentence(answer.detail, `It answered with an error (HTTP ${Number(answer.status)}).`),
      advice: sentence(answer.hint, 'The page tries again by itself.'),
    };
  default: // offline
    return {
      ...BASE, state: 'offline', tone: 'bad', retry: true, title: 'The controller does not answer',
      text: 'The desktop may still run in its VM. The page is trying again, and connects by itself when the '
        + 'controller is back.',
      advice: 'If this stays, check your network. An operator can look at the service:',
      command: 'systemctl status master-controller',
    };
  }
}

/* The view of it all.
 * answer: what api.js got for the status: {kind: 'ok', session, vm} or one of the kinds above
 * close: how the last connection to the desktop ended, or null
 * mayConnect: whether the back-off allows the next attempt
 * wake: see viewOfRest() */
export function viewOf({ answer, close = null, mayConnect = true, ticketRefused = false, wake = null }) {
  if (answer.kind !== 'ok') return viewOfProblem(answer, close, ticketRefused);
  const view = viewOfEnd(answer.session) ?? viewOfVm(answer.session, answer.vm, wake);
  if (view.next !== 'connect' || !close) return view;
  return { ...viewOfClose(close, answer.session, answer.vm), ...(mayConnect ? { next: 'connect' } : {}) };
}
