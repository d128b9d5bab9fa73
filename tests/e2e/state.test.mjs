/* The words and decisions of the page (web/static/state.js), without a browser. */

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Api, sessionBase } from '../../web/static/api.js';
import {
  CLOSE, STEPS, backoffMs, bootClock, clean, credentialWords, duration, mayCancel, sentence, stateWords, timeLeft, viewOf,
  viewOfClose, viewOfLogin,
} from '../../web/static/state.js';

const VM_ID = 'vm-69fac673-2f0e-4b1c-9d3a-5e8f7a6b4c2d';
const session = (more = {}) => ({ id: 'a', user: 'ann', provider: 'demo', status: 'vm_created', vm_id: VM_ID, ...more });
const vm = (more = {}) => ({ id: VM_ID, state: 'running', reachable: null, finding: null, ...more });
const ok = (s = session(), v = vm()) => ({ kind: 'ok', session: s, vm: v });

const VM_STATES = ['creating', 'booting', 'running', 'hibernating', 'hibernated', 'resuming', 'stopping', 'stopped',
  'failed'];
const SESSION_ENDS = ['completed', 'failed', 'cancelled', 'timeout'];
const STATES = ['loading', 'connecting', 'booting', 'asleep', 'waking', 'connected', 'reconnecting', 'offline', 'failed', 'ended',
  'link'];

/* A view says something, in a known state, and something follows from it. */
function assertWhole(view, about) {
  assert.ok(STATES.includes(view.state), about);
  assert.ok(view.title.length > 3, about);
  assert.ok(['poll', 'connect', 'stop'].includes(view.next), about);
  assert.ok(['busy', 'good', 'bad', 'done'].includes(view.tone), about);
  assert.ok(view.next === 'stop' || view.pollMs >= 1000, about);
  assert.ok(view.step === null || view.step < STEPS.length, about);
  if (view.tone === 'bad') assert.ok(view.text && (view.advice || view.command), `${about}: no cause or advice`);
}

describe('viewOf', () => {
  test('has words for every state of a VM, and connects only to a running one', () => {
    for (const state of [...VM_STATES, 'a state of the future']) {
      const view = viewOf({ answer: ok(session(), vm({ state })) });
      assertWhole(view, state);
      assert.equal(view.next === 'connect', state === 'running', state);
    }
  });

  test('a session that has ended is an end whatever its VM does', () => {
    for (const status of SESSION_ENDS)
      for (const state of VM_STATES) {
        const view = viewOf({ answer: ok(session({ status, reason: 'because' }), vm({ state })) });
        assertWhole(view, status);
        assert.equal(view.next, 'stop');
        assert.equal(view.text, 'Because.');
      }
  });

  test('no VM yet, and a VM that is gone, are not the same', () => {
    assert.equal(viewOf({ answer: ok(session({ status: 'started', vm_id: null }), null) }).state, 'booting');
    assert.equal(viewOf({ answer: ok(session(), null) }).state, 'failed');
  });

  test('the reason of a failed VM becomes a sentence', () => {
    const view = viewOf({ answer: ok(session(), vm({ state: 'failed', reason: 'out of memory' })) });
    assert.equal(view.text, 'Out of memory.');
    assert.equal(view.command, `mctl vm why ${VM_ID}`);
  });

  test('after a close the back-off decides when to connect, and the words stay', () => {
    const close = { code: 1014, reason: 'no route', problem: null };
    const waiting = viewOf({ answer: ok(), close, mayConnect: false });
    const trying = viewOf({ answer: ok(), close, mayConnect: true });
    assert.equal(waiting.next, 'poll');
    assert.equal(trying.next, 'connect');
    assert.equal(waiting.title, trying.title);
  });

  test('a VM that is no longer running is told instead of the close', () => {
    const close = { code: 1011, reason: '', problem: null };
    assert.equal(viewOf({ answer: ok(session(), vm({ state: 'failed' })), close }).title, 'The VM failed');
    assert.equal(viewOf({ answer: ok(session(), vm({ state: 'booting' })), close }).state, 'booting');
  });

  test('a VM at rest is told as that, with a way to wake it, until it is asked to', () => {
    const close = { code: CLOSE.AWAY_FOR_A_WHILE, reason: 'The VM is put to rest. The page comes back when it is woken.', problem: null };
    const at = (state, wake, reason = 'its memory was saved') => viewOf({ answer: ok(session(), vm({ state, reason })), close, wake });
    for (const state of ['hibernating', 'hibernated']) {
      assert.deepEqual([at(state).state, at(state).retry, at(state).command], ['asleep', false, ''], state);
      assert.ok(at(state).wake);
      assert.deepEqual([at(state, { asked: true }).state, at(state, { asked: true }).wake], ['waking', ''], state);
    }
    assert.match(at('hibernated').text, /Its memory was saved\.$/);
    assert.doesNotMatch(at('hibernated').advice, /time/);
    const limited = viewOf({ answer: ok(session({ timeout_at: '2026-01-01T00:00:00Z' }), vm({ state: 'hibernated' })) });
    assert.match(limited.advice, /The session's time runs on meanwhile\.$/);
    assert.equal(at('resuming').state, 'waking');
    assert.equal(at('resuming').wake, '');
    const failed = at('hibernated', { problem: { detail: 'there is no room', hint: 'End another VM' } });
    assertWhole(failed, 'a problem');
    assert.deepEqual([failed.tone, failed.text, failed.advice, failed.command], ['bad', 'There is no room.', 'End another VM.', '']);
    assert.ok(failed.wake);
    const unanswered = at('hibernated', { problem: { kind: 'offline' } });
    assertWhole(unanswered, 'no answer');
    assert.match(unanswered.text, /did not answer/);
    assert.ok(unanswered.wake);
    assert.equal(at('hibernated', { problem: {} }).command, `mctl vm why ${VM_ID}`);
    assert.equal(viewOf({ answer: ok(session(), vm()), wake: { asked: true } }).next, 'connect', 'it is there');
  });

  test('a controller that said that it restarts is not one that does not answer', () => {
    const close = { code: CLOSE.AWAY_FOR_A_WHILE, reason: 'The controller restarts.', problem: null };
    const view = viewOf({ answer: { kind: 'offline' }, close });
    assertWhole(view, 'restart');
    assert.deepEqual([view.state, view.tone, view.text], ['reconnecting', 'busy', 'The controller restarts.']);
    assert.equal(viewOf({ answer: { kind: 'offline' }, close: { ...close, code: 1006 } }).state, 'offline');
    assert.equal(viewOf({ answer: { kind: 'missing' }, close }).state, 'ended');
  });

  test('answers that are no status', () => {
    for (const [answer, state, next] of [
      [{ kind: 'refused' }, 'link', 'stop'], [{ kind: 'missing' }, 'ended', 'stop'],
      [{ kind: 'trouble', status: 500 }, 'offline', 'poll'], [{ kind: 'offline' }, 'offline', 'poll']]) {
      const view = viewOf({ answer });
      assertWhole(view, answer.kind);
      assert.deepEqual([view.state, view.next], [state, next]);
    }
    assert.match(viewOf({ answer: { kind: 'refused' }, ticketRefused: true }).text, /used or is too old/);
  });
});

describe('viewOfClose', () => {
  test('has words for every code and what follows from it', () => {
    const stops = [CLOSE.NO_CREDENTIAL, CLOSE.NO_SUCH_SESSION, CLOSE.TIMED_OUT];
    for (const code of [...Object.values(CLOSE), 1000, 1001, 1002, 1005, 1009, 1015, 3000, 4999]) {
      const view = viewOfClose({ code, reason: '', problem: null }, session(), vm());
      assertWhole(view, code);
      assert.equal(view.next === 'stop', stops.includes(code), code);
    }
    for (const problem of ['silent', 'password', 'protocol'])
      assertWhole(viewOfClose({ code: 1000, reason: '', problem }, session(), vm()), problem);
  });

  test('the relay\'s reason is what a person reads', () => {
    for (const code of [1011, 1012, 1013, 1014, 4401, 4404, 4408])
      assert.match(viewOfClose({ code, reason: 'the cable is cut', problem: null }, session(), vm()).text,
        /^The cable is cut\./, code);
  });

  test('commands hold only what cannot surprise in a shell', () => {
    const close = { code: 1011, reason: '', problem: null };
    assert.equal(viewOfClose(close, session(), vm({ id: 'vm-1; reboot' })).command, 'mctl vm why VM-ID');
    const ended = viewOfClose({ ...close, code: 4404 }, session({ user: '$(reboot)', provider: '`x`' }), vm());
    assert.equal(ended.command, 'mctl auth start --user USER --provider PROVIDER');
  });
});

describe('text of others', () => {
  test('clean() drops terminal sequences, control characters and marks that reorder text', () => {
    assert.equal(clean('\x1b[1;31mred\x1b[0m\x07 \x1b]0;title\x07ok\r\n\tnext'), 'red  ok next');
    assert.equal(clean('a\u202egnp.exe\u2066\u200bb\u2028c'), 'agnp.exeb c');
    assert.equal(clean('\u0000\u009b'), '');
    assert.equal(clean('grüße 你好 🙂'), 'grüße 你好 🙂');
    assert.equal(clean('\ud800x'), 'x');
    for (const other of [null, undefined, 7, {}, []]) assert.equal(clean(other), '');
  });

  test('clean() shortens between whole characters, and is quick on a huge line', () => {
    assert.equal(clean('🙂🙂🙂🙂', 3), '🙂🙂…');
    const start = performance.now();
    assert.equal([...clean('\x1b]'.repeat(5e6), 240)].length <= 240, true);
    assert.equal([...clean('A'.repeat(1e7), 240)].length, 240);
    assert.ok(performance.now() - start < 2000);
  });

  test('sentence()', () => {
    assert.equal(sentence('no route to host'), 'No route to host.');
    assert.equal(sentence('Done!'), 'Done!');
    assert.equal(sentence('', 'Nothing.'), 'Nothing.');
  });
});

describe('time', () => {
  test('duration()', () => {
    for (const [ms, text] of [[-5, '0 s'], [0, '0 s'], [1499, '1 s'], [59600, '1 min'], [75000, '1 min 15 s'],
      [3600000, '1 h'], [5430000, '1 h 30 min']]) assert.equal(duration(ms), text);
  });

  test('backoffMs() grows from 1 s to at most 15 s, with some chance', () => {
    assert.deepEqual([0, 1, 2, 3, 4, 5, 6, 100].map((n) => backoffMs(n, 0)),
      [1000, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
    assert.equal(backoffMs(5, 1), 12000);
    assert.equal(backoffMs(1, 1), 1000);
  });

  test('bootClock() and timeLeft() with and without limits, and with nonsense', () => {
    const at = Date.parse('2026-01-01T00:00:00Z');
    const boot = { state_since: '2026-01-01T00:00:00Z', boot_deadline_at: '2026-01-01T00:03:00Z' };
    assert.equal(bootClock(boot, at + 12000), '12 s so far; it may take up to 3 min.');
    assert.match(bootClock(boot, at + 181000), /longer than it may take/);
    assert.equal(bootClock({ ...boot, boot_deadline_at: null }, at + 12000), '12 s so far.');
    assert.equal(bootClock({ state_since: 'x' }, at), '');
    assert.equal(bootClock(null, at), '');
    assert.deepEqual(timeLeft({ timeout_at: '2026-01-01T00:01:15Z' }, at), { ms: 75000, words: '1 min 15 s' });
    assert.deepEqual(timeLeft({ timeout_at: '2026-01-01T00:00:00Z' }, at + 1), { ms: -1, words: 'none' });
    assert.equal(timeLeft({ timeout_at: null }, at), null);
  });
});

test('stateWords() knows every state', () => {
  for (const state of STATES) assert.notEqual(stateWords(state), state);
});

test('sessionBase() takes a session\'s page and nothing else', () => {
  assert.equal(sessionBase('/api/auth/session/0a/novnc'), '/api/auth/session/0a');
  for (const path of ['/', '/api/auth/session//novnc', '/api/auth/session/a/b/novnc', '/x/api/auth/session/a/novnc',
    '/api/auth/session/%2e%2e/novnc']) assert.equal(sessionBase(path), null, path);
});

test('an error without the controller\'s reasons, from a proxy, is no answer', async (t) => {
  let response;
  t.mock.method(globalThis, 'fetch', async () => response);
  for (const status of [502, 503, 504])
    for (const [body, kind] of [['<h1>Bad Gateway</h1>', 'offline'], ['', 'offline'], ['{"title": "Bad Gateway"}', 'trouble'],
      ['{"detail": "it did not wake"}', 'trouble']]) {
      response = new Response(body, { status });
      assert.equal((await new Api('').wake()).kind, kind, `${status} ${body}`);
    }
  response = new Response('<h1>Oops</h1>', { status: 500 });
  assert.equal((await new Api('').wake()).kind, 'trouble');
});

describe('the login tool', () => {
  const login = (more = {}) => ({ flow: 'authorization-code', words: 'log in', opened: false, user_code: null, takes_code: false,
    ...more });

  test('is shown while the session lives, and its page once there is one', () => {
    assert.equal(viewOfLogin(session(), null), null);
    assert.equal(viewOfLogin(session({ status: 'awaiting_user_auth' }), login()).open, '');
    assert.match(viewOfLogin(session({ status: 'authenticating' }), login()).open, /on the desktop/);
    assert.match(viewOfLogin(session({ status: 'authenticating' }), login({ opened: true })).open, /again/);
    for (const status of SESSION_ENDS) {
      assert.equal(viewOfLogin(session({ status }), login()), null);
      assert.equal(mayCancel(session({ status })), false);
    }
    assert.equal(mayCancel(session()), true);
    assert.equal(mayCancel(undefined), false);
  });

  test('says and takes a code', () => {
    const view = viewOfLogin(session(), login({ user_code: 'ABCD-EFGH\u202e', takes_code: true }));
    assert.equal(view.code, 'ABCD-EFGH');
    assert.equal(view.takesCode, true);
    assert.equal(viewOfLogin(session(), { words: null }).takesCode, false);
    assert.ok(viewOfLogin(session(), { words: null }).words);
  });

  test('a completed login says where it has gone, if that is known', () => {
    assert.equal(credentialWords(null), '');
    assert.equal(credentialWords({ stored: false }), '');
    assert.match(credentialWords({ stored: true, in_vm: null }), /as soon as it runs/);
    assert.match(credentialWords({ stored: true, in_vm: VM_ID }), new RegExp(`${VM_ID} is logged in`));
  });
});
