/* What a person reads on the page, in each state and after each ending, in Debian's Chromium against a mock of
 * the daemon. A screenshot of every state is kept (MC_E2E_OUT, default build/e2e): look at them after a change.
 */

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { launch } from './browser.mjs';
import { MockDaemon, SESSION_ID, VM_ID, ago } from './mock-daemon.mjs';

const OUT = path.resolve(process.env.MC_E2E_OUT || fileURLToPath(new URL('../../build/e2e', import.meta.url)));
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const TICKET = '#ticket=good-ticket';
const WAIT_MS = 30000;
const AT_ONCE = 2; // pages; most of a test's time is a page's own waiting

let browser;
before(async () => {
  mkdirSync(OUT, { recursive: true });
  browser = await launch();
});
after(() => browser?.close());

/* One page on one daemon. After it: nothing was blocked by the policy, nothing was asked of another origin, and
 * nothing was written to the console's errors but what `allow` names (Chromium itself reports failed requests). */
async function scene({ allow = [], hash = TICKET, prepare = () => {}, context: options = {} }, play) {
  const daemon = await MockDaemon.start();
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  const errors = [];
  const foreign = [];
  page.on('console', (message) => {
    if (message.type() === 'error') errors.push(message.text());
  });
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('request', (request) => {
    const { protocol, host } = new URL(request.url());
    if (protocol !== 'data:' && host !== `127.0.0.1:${daemon.port}`) foreign.push(request.url());
  });
  try {
    await page.addInitScript(() => {
      document.addEventListener('securitypolicyviolation', (event) => {
        console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
      });
    });
    await prepare(daemon, page);
    await page.goto(daemon.pageUrl(hash));
    await play({ daemon, page, context });
    assert.deepEqual(errors.filter((text) => !allow.some((pattern) => pattern.test(text))), [], 'console errors');
    assert.deepEqual(foreign, [], 'requests to other origins');
  } catch (error) {
    const { state, picture } = await page.evaluate(() => ({ ...document.documentElement.dataset })).catch(() => ({}));
    error.message += `\n(the page: state ${state}, picture ${picture}; console errors: ${JSON.stringify(errors)})`;
    throw error;
  } finally {
    await context.close();
    await daemon.stop();
  }
}

/* What Chromium and noVNC write by themselves when a request or a handshake fails. */
const FAILED_REQUEST = /^Failed to load resource/;
const FAILED_SOCKET = /^WebSocket connection to .* failed/;
const FAILED_RFB = /^Failed when (connecting|disconnecting|connected)/;

const inState = (page, state) => page.waitForFunction(
  (wanted) => document.documentElement.dataset.state === wanted, state, { timeout: WAIT_MS });
const words = (page, selector) => page.locator(selector).innerText();
const panel = (page) => words(page, '#panel');

/* Screenshots at a desk's and at a phone's width, and in the dark; nothing may be cut off sideways. */
async function look(page, name) {
  for (const [width, height] of [[1280, 800], [360, 740]]) {
    await page.setViewportSize({ width, height });
    await settled(page);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${name} is ${overflow} px wider than ${width} px`);
    await page.screenshot({ path: path.join(OUT, `${name}-${width}.png`) });
  }
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.emulateMedia({ colorScheme: 'dark' });
  await settled(page);
  await page.screenshot({ path: path.join(OUT, `${name}-dark.png`) });
  await page.emulateMedia({ colorScheme: 'light' });
}

const settled = (page) => page.evaluate(() => new Promise((resolve) => {
  requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(resolve)));
}));

/* Names, roles, contrast and the rest of what axe can judge, in light and in dark. */
async function accessible(page) {
  for (const colorScheme of ['dark', 'light']) {
    await page.emulateMedia({ colorScheme });
    await page.evaluate(AXE);
    const found = await page.evaluate(async () => (await globalThis.axe.run()).violations
      .flatMap((one) => one.nodes.map((node) => `${one.id}: ${node.target} ${node.failureSummary}`)));
    assert.deepEqual(found, [], colorScheme);
  }
}

const running = (daemon) => { daemon.vm.state = 'running'; };
const asleep = (daemon) => Object.assign(daemon.vm, { state: 'hibernated', reason: 'its memory, 1024 MiB, was saved in 2.1 s' });
const WAKES = `POST /api/auth/session/${SESSION_ID}/wake`;

const comeToWindow = (page) => page.evaluate(() => dispatchEvent(new Event('focus')));

async function polled(daemon, times) {
  const status = `GET /api/auth/session/${SESSION_ID}`;
  const before = daemon.count(status);
  await until(() => daemon.count(status) >= before + times);
}

describe('the way in', { concurrency: AT_ONCE }, () => {
  test('a ticket becomes a cookie that script cannot read, and leaves the address', () =>
    scene({}, async ({ daemon, page, context }) => {
      await inState(page, 'booting');
      assert.equal(await page.evaluate(() => location.hash), '');
      assert.equal(await page.evaluate(() => document.cookie), '');
      const [cookie] = await context.cookies(`${daemon.origin}/api/auth/session/${SESSION_ID}`);
      assert.equal(cookie.name, 'mc_session');
      assert.equal(cookie.httpOnly, true);
      assert.equal(cookie.sameSite, 'Strict');
      assert.equal(daemon.count(`POST /api/auth/session/${SESSION_ID}/ticket`), 1);

      await page.reload(); // the cookie is enough
      await inState(page, 'booting');
      assert.equal(daemon.count(`POST /api/auth/session/${SESSION_ID}/ticket`), 1);
    }));

  test('a used ticket with a cookie goes on', () =>
    scene({ allow: [FAILED_REQUEST] }, async ({ daemon, page }) => {
      await inState(page, 'booting');
      await page.goto('about:blank');
      await page.goto(daemon.pageUrl(TICKET));
      await inState(page, 'booting');
      assert.equal(await page.evaluate(() => location.hash), '');
    }));

  test('a used ticket without a cookie says where to get a new link', () =>
    scene({ hash: '#ticket=used', allow: [FAILED_REQUEST] }, async ({ page }) => {
      await inState(page, 'link');
      assert.match(await panel(page), /This link has been used or is too old\./);
      assert.match(await words(page, '#command'), /^mctl auth start --user USER --provider PROVIDER$/);
      await accessible(page);
      await look(page, 'link');
    }));

  test('an address without a ticket says that it needs a link', () =>
    scene({ hash: '', allow: [FAILED_REQUEST] }, async ({ page }) => {
      await inState(page, 'link');
      assert.match(await panel(page), /This page needs a link/);
    }));

  test('a new link opened in the same tab is taken', () =>
    scene({ hash: '#ticket=used', allow: [FAILED_REQUEST] }, async ({ page }) => {
      await inState(page, 'link');
      await page.evaluate(() => { location.hash = '#ticket=good-ticket'; });
      await inState(page, 'booting');
    }));

  test('a ticket is not lost when the controller does not answer at first', () => {
    let failing = true;
    return scene({
      allow: [FAILED_REQUEST],
      prepare: (daemon, page) => page.route('**/ticket', (route) => (failing ? route.abort() : route.continue())),
    }, async ({ page }) => {
      await inState(page, 'offline');
      assert.match(await page.evaluate(() => location.hash), /good-ticket/);
      failing = false;
      await page.getByRole('button', { name: 'Reconnect now' }).click();
      await inState(page, 'booting');
    });
  });

  test('a session that does not exist', () =>
    scene({ allow: [FAILED_REQUEST], prepare: (daemon) => { daemon.problem = { status: 404 }; } },
      async ({ page }) => {
        await inState(page, 'ended');
        assert.match(await panel(page), /There is no such session/);
      }));
});

describe('until there is a desktop', { concurrency: AT_ONCE }, () => {
  test('boot: state, time, deadline and the console\'s last line', () =>
    scene({
      prepare: (daemon) => {
        daemon.vm.console_line = '[    4.213] systemd[1]: Started x11vnc.service - Shows the X display over VNC.';
      },
    }, async ({ page }) => {
      await inState(page, 'booting');
      assert.match(await panel(page), /The desktop is starting/);
      assert.match(await words(page, '#clock'), /^\d+ s so far; it may take up to 2 min\.$/);
      assert.match(await words(page, '#console-line'), /Started x11vnc\.service/);
      assert.equal(await words(page, '[aria-current=step]'), 'Start its system and desktop');
      assert.match(await words(page, 'header'), /User\s+demo\s+Provider\s+demo/);
      assert.match(await words(page, 'header'), new RegExp(VM_ID));
      assert.match(await page.locator('#live').textContent(), /^The desktop is starting\./);
      await accessible(page);
      await look(page, 'booting');
    }));

  test('before there is a VM', () =>
    scene({
      prepare: (daemon) => {
        Object.assign(daemon.session, { status: 'started', vm_id: null });
        daemon.vm = null;
      },
    }, async ({ page }) => {
      await inState(page, 'booting');
      assert.equal(await words(page, '[aria-current=step]'), 'Make the VM');
      await look(page, 'no-vm');
    }));

  test('a hostile console line is only text', () =>
    scene({
      prepare: (daemon) => {
        daemon.vm.console_line = `\x1b[31m<img src=x onerror="document.title='owned'">\u202e${'A'.repeat(5000)}`;
        daemon.vm.reason = '<b>bold</b>';
      },
    }, async ({ page }) => {
      await inState(page, 'booting');
      const line = await words(page, '#console-line');
      assert.ok(line.startsWith('<img src=x'), line.slice(0, 40));
      assert.ok(line.length <= 240);
      assert.equal(await page.locator('#panel img, #panel b').count(), 0);
      assert.doesNotMatch(await page.title(), /owned/);
      await look(page, 'hostile');
    }));

  test('a VM that fails says why, and what an operator can do', () =>
    scene({}, async ({ daemon, page }) => {
      await inState(page, 'booting');
      Object.assign(daemon.vm, {
        state: 'failed', console_line: 'Kernel panic - not syncing: Out of memory',
        reason: 'the desktop did not answer on 192.168.0.2:6080 within 2 min: the guest has run out of memory',
      });
      await inState(page, 'failed');
      assert.match(await panel(page), /The desktop did not answer .* run out of memory\./);
      assert.match(await words(page, '#console-line'), /Kernel panic/);
      assert.equal(await words(page, '#command'), `mctl vm why ${VM_ID}`);
      await accessible(page);
      await look(page, 'failed');
    }));

  test('each end of a session has its words', async (t) => {
    const ends = [
      ['completed', 'ended', /The login is complete/], ['cancelled', 'ended', /The session was cancelled/],
      ['timeout', 'ended', /The session timed out/], ['failed', 'failed', /The session failed/],
    ];
    for (const [status, state, pattern] of ends)
      await t.test(status, () => scene({
        prepare: (daemon) => {
          Object.assign(daemon.session, { status, reason: 'cancelled by root: test' });
          asleep(daemon);
        },
      }, async ({ daemon, page }) => {
        await inState(page, state);
        assert.match(await panel(page), pattern);
        assert.match(await panel(page), /Cancelled by root: test\./);
        await page.waitForTimeout(1500);
        assert.equal(daemon.count(`GET /api/auth/session/${SESSION_ID}`), 1, 'it goes on asking after the end');
        assert.equal(daemon.count(WAKES), 0, 'nobody needs its VM');
        await look(page, `session-${status}`);
      }));
  });
});

describe('the desktop', { concurrency: AT_ONCE }, () => {
  test('shows, scales, takes keys and clicks, and gives the keyboard back', () =>
    scene({
      prepare: (daemon) => {
        running(daemon);
        daemon.session.timeout_at = ago(-270);
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      await page.waitForFunction(() => document.documentElement.dataset.picture === 'drawn');
      assert.deepEqual(await canvasSize(page), { width: 800, height: 600 });
      assert.ok(await colours(page) > 10);
      assert.match(await words(page, 'header'), /4 min \d+ s/);
      assert.equal(await page.locator('#panel').isVisible(), false);

      // The focus is in the desktop: keys go there, Tab too.
      await page.keyboard.press('a');
      await page.keyboard.press('Tab');
      await until(() => daemon.rfb.keys.some((key) => key.keysym === 0xff09));
      assert.ok(daemon.rfb.keys.some((key) => key.keysym === 0x61));
      await page.mouse.click(640, 450);
      await until(() => daemon.rfb.clicks.length > 0);
      await look(page, 'connected');

      const topInside = await desktopTop(page);

      // The way out: Ctrl, Alt and Shift together. Nothing stays pressed in the desktop.
      for (const key of ['Control', 'Alt', 'Shift']) await page.keyboard.down(key);
      for (const key of ['Shift', 'Alt', 'Control']) await page.keyboard.up(key);
      await page.waitForFunction(() => document.activeElement.id === 'use-desktop');
      await until(() => daemon.rfb.keys.filter((key) => key.down).length
        === daemon.rfb.keys.filter((key) => !key.down).length);
      await accessible(page);
      await look(page, 'connected-keys-out');
      const before = daemon.rfb.keys.length;
      assert.equal(await desktopTop(page), topInside, 'the desktop moved');
      await page.keyboard.press('b');
      assert.equal(daemon.rfb.keys.length, before);
      await page.keyboard.press('Enter'); // the button: back in
      await page.keyboard.press('c');
      await until(() => daemon.rfb.keys.some((key) => key.keysym === 0x63));

      // The window changes, the picture follows and keeps its shape.
      await page.setViewportSize({ width: 600, height: 900 });
      await page.waitForFunction(() => {
        const box = document.querySelector('#desktop canvas').getBoundingClientRect();
        return box.width <= 600 && box.width > 500 && Math.abs(box.width / box.height - 4 / 3) < 0.02;
      });
    }));

  test('on a phone there is a field to type from, and keys that it lacks', () =>
    scene({ prepare: running, context: { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true } },
      async ({ daemon, page }) => {
        await inState(page, 'connected');
        await page.getByLabel('Type on the desktop').fill('Aé€');
        await page.getByRole('button', { name: 'Type it' }).tap();
        await page.getByRole('button', { name: 'Enter' }).tap();
        const wanted = [0x41, 0xe9, 0x10020ac, 0xff0d];
        await until(() => daemon.rfb.keys.length === 2 * wanted.length);
        assert.deepEqual(daemon.rfb.keys.filter((key) => key.down).map((key) => key.keysym), wanted);
        assert.equal(await page.getByLabel('Type on the desktop').inputValue(), '');
        await accessible(page);
        await page.screenshot({ path: path.join(OUT, 'phone-typing.png') });
      }));

  test('with a keyboard there is none', () =>
    scene({ prepare: running }, async ({ page }) => {
      await inState(page, 'connected');
      assert.equal(await page.locator('#typing').isVisible(), false);
    }));

  test('a black desktop is not without words', () =>
    scene({
      prepare: (daemon) => {
        running(daemon);
        daemon.desktop = { rfb: { black: true } };
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      await page.waitForFunction(() => document.documentElement.dataset.picture === 'black');
      assert.match(await words(page, '#note'), /nothing is drawn on it yet/);
      await look(page, 'black');
      daemon.rfb.draw();
      await page.waitForFunction(() => document.documentElement.dataset.picture === 'drawn');
      assert.equal(await page.locator('#note').isVisible(), false);
    }));

  test('the network doctor\'s finding and the last minute are told', () =>
    scene({
      prepare: (daemon) => {
        running(daemon);
        daemon.session.timeout_at = ago(-50);
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      assert.match(await page.locator('#live').textContent(), /Less than a minute is left/);
      Object.assign(daemon.vm, { reachable: false, finding: 'ARP is dropped by bridge filter OUTPUT handle 4' });
      await page.waitForFunction(() => document.getElementById('note').textContent.includes('handle 4'));
      await accessible(page);
      await look(page, 'finding');
    }));

  test('a session that ends while the desktop is open', () =>
    scene({ prepare: running }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      Object.assign(daemon.session, { status: 'cancelled', reason: 'cancelled by root' });
      await inState(page, 'ended');
      assert.match(await panel(page), /The session was cancelled/);
      assert.equal(await page.locator('#desktop canvas').count(), 0);
    }));
});

describe('the login', { concurrency: AT_ONCE }, () => {
  const authenticating = (login) => (daemon) => {
    running(daemon);
    daemon.session.status = 'authenticating';
    daemon.login = { flow: 'authorization-code', words: 'log in on the desktop', opened: false, user_code: null,
      takes_code: false, ...login };
  };

  test('the login page is opened on the desktop by a button, and a refusal is told', () =>
    scene({
      prepare: (daemon) => {
        authenticating({})(daemon);
        daemon.loginUrl = 'https://provider.example/authorize?state=secret';
      },
      allow: [FAILED_REQUEST],
    }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      assert.match(await words(page, '#login'), /Log in on the desktop\./);
      assert.match(await page.locator('#live').textContent(), /Log in on the desktop\./);
      await accessible(page);
      await look(page, 'login');
      await page.getByRole('button', { name: 'Open the login page on the desktop' }).click();
      await until(() => daemon.bodies.length === 1);
      assert.deepEqual(daemon.bodies[0], ['open-url', { url: daemon.loginUrl }]);
      await page.waitForFunction(() => /page is open/.test(document.getElementById('said').textContent));
      assert.doesNotMatch(await page.content(), /state=secret/, 'the address is nowhere on the page');
      daemon.login.opened = true;
      await page.getByRole('button', { name: 'Open the login page again' }).waitFor();
      daemon.refusal = { status: 502, detail: 'the browser in the VM did not open the address', hint: 'Look at the desktop' };
      await page.getByRole('button', { name: 'Open the login page again' }).click();
      await page.waitForFunction(() => /did not open the address\. Look at the desktop\./.test(
        document.getElementById('said').textContent));
      daemon.refusal = null;
      daemon.loginUrl = null;
      await page.getByRole('button', { name: 'Open the login page again' }).click();
      await page.waitForFunction(() => /The tool starts\./.test(document.getElementById('said').textContent));
    }));

  test('before the tool has an address there is nothing to open', () =>
    scene({
      prepare: (daemon) => {
        authenticating({ words: 'the login tool starts' })(daemon);
        daemon.session.status = 'awaiting_user_auth';
      },
    }, async ({ page }) => {
      await inState(page, 'connected');
      assert.match(await words(page, '#login'), /The login tool starts\./);
      assert.equal(await page.locator('#login-open').isVisible(), false);
    }));

  test('the code of a device flow is shown, and spoken', () =>
    scene({ prepare: authenticating({ flow: 'device-code', words: 'type the code at the provider', user_code: 'WDJB-MJHT' }) },
      async ({ page }) => {
        await inState(page, 'connected');
        assert.match(await words(page, '#login-code-line'), /WDJB-MJHT/);
        assert.match(await page.locator('#live').textContent(), /Your code: WDJB-MJHT/);
        await accessible(page);
        await look(page, 'login-device');
      }));

  test('a code that the user carries goes to the tool, by keyboard', () =>
    scene({ prepare: authenticating({ flow: 'paste', words: 'paste the code', takes_code: true }) },
      async ({ daemon, page }) => {
        await inState(page, 'connected');
        await page.getByLabel('Code that the provider showed').fill(' abc#def ');
        await page.keyboard.press('Enter');
        await until(() => daemon.bodies.length === 1);
        assert.deepEqual(daemon.bodies[0], ['code', { code: 'abc#def' }]);
        assert.equal(await page.getByLabel('Code that the provider showed').inputValue(), '');
        await accessible(page);
        await look(page, 'login-paste');
      }));

  test('hostile words of the tool are only text', () =>
    scene({ prepare: authenticating({ words: '<img src=x onerror=1>\u202e', user_code: '<b>A</b>'.repeat(20) }) },
      async ({ page }) => {
        await inState(page, 'connected');
        assert.match(await words(page, '#login-words'), /^<img src=x onerror=1>/);
        assert.equal(await page.locator('#login img, #login b').count(), 0);
        await look(page, 'login-hostile');
      }));

  test('a login is cancelled, after a question', () =>
    scene({ prepare: authenticating({}) }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      await page.getByRole('button', { name: 'Cancel the login' }).click();
      await accessible(page);
      await look(page, 'cancel');
      await page.getByRole('button', { name: 'Go on with the login' }).click();
      assert.equal(daemon.bodies.length, 0);
      await page.getByRole('button', { name: 'Cancel the login' }).click();
      await page.keyboard.press('Escape');
      assert.equal(daemon.bodies.length, 0);
      await page.getByRole('button', { name: 'Cancel the login' }).click();
      await page.getByRole('button', { name: 'Cancel it' }).click();
      await inState(page, 'ended');
      assert.match(await panel(page), /The session was cancelled.*Cancelled on its page\./s);
      assert.equal(await page.locator('#cancel').isVisible(), false);
    }));

  test('while it boots it can be cancelled too, and a refusal is told', () =>
    scene({ allow: [FAILED_REQUEST] }, async ({ daemon, page }) => {
      await inState(page, 'booting');
      daemon.refusal = { status: 409, detail: 'the session is completed already' };
      await page.getByRole('button', { name: 'Cancel the login' }).click();
      await page.getByRole('button', { name: 'Cancel it' }).click();
      await page.waitForFunction(() => /is completed already\./.test(document.getElementById('said').textContent));
    }));

  test('a completed login says where it has gone', async (t) => {
    const vms = [[null, /as soon as it runs/], [VM_ID, new RegExp(`Your CLI VM ${VM_ID} is logged in now`)]];
    for (const [vm, pattern] of vms)
      await t.test(vm ?? 'no VM', () => scene({
        prepare: (daemon) => {
          Object.assign(daemon.session, { status: 'completed', reason: 'the login works' });
          daemon.credential.in_vm = vm;
        },
      }, async ({ page }) => {
        await inState(page, 'ended');
        await page.waitForFunction(() => /CLI VM/.test(document.getElementById('text').textContent));
        assert.match(await panel(page), pattern);
        await look(page, `completed-${vm ? 'in-vm' : 'stored'}`);
      }));
  });
});

describe('when a connection ends', { concurrency: AT_ONCE }, () => {
  const endings = [
    // code, reason, state, what must be read, the command
    [1011, 'The VM stopped answering.', 'reconnecting', /The VM was lost.*stopped answering/s, `mctl vm why ${VM_ID}`],
    [1012, 'The controller restarts. The page comes back by itself.', 'reconnecting',
      /away for a moment.*The controller restarts.*comes back by itself/s, null],
    [1013, 'The VM boots, port 6080 is closed.', 'booting', /The desktop is starting.*port 6080 is closed/s, null],
    [1014, 'Nothing answers on port 6080.', 'reconnecting', /cannot be reached.*Nothing answers/s,
      `mctl doctor --vm ${VM_ID}`],
    [4401, 'The cookie has expired.', 'link', /no access any more.*cookie has expired.*Ask for a new one/s,
      'mctl auth start --user demo --provider demo'],
    [4404, '', 'ended', /There is no such session/, 'mctl auth start --user demo --provider demo'],
    [4408, 'The 300 s of this session are over.', 'ended', /timed out.*300 s/s,
      'mctl auth start --user demo --provider demo'],
    [1000, '', 'reconnecting', /closed the connection.*Code 1000/s, null],
    [4999, 'a new code', 'reconnecting', /A new code\. \(Code 4999\.\)/, null],
  ];
  for (const [code, reason, state, pattern, command] of endings)
    test(`${code} at once`, () =>
      scene({
        allow: [FAILED_RFB],
        prepare: (daemon) => {
          running(daemon);
          daemon.desktop = { close: [code, reason] };
        },
      }, async ({ daemon, page }) => {
        await inState(page, state);
        assert.match(await panel(page), pattern);
        if (command) assert.equal(await words(page, '#command'), command);
        await accessible(page);
        await look(page, `close-${code}`);
        if (state === 'link' || state === 'ended') {
          await page.waitForTimeout(2500);
          assert.equal(daemon.attempts.length, 1, 'it goes on trying');
          return;
        }
        daemon.desktop = { rfb: {} }; // and it connects by itself when it can
        await inState(page, 'connected');
        assert.equal(await page.locator('#desktop canvas').count(), 1);
      }));

  test('1014 with a finding of the doctor', () =>
    scene({
      allow: [FAILED_RFB],
      prepare: (daemon) => {
        Object.assign(daemon.vm, { state: 'running', reachable: false, finding: 'The TAP is on no bridge' });
        daemon.desktop = { close: [1014, 'The VM does not answer.'] };
      },
    }, async ({ page }) => {
      await inState(page, 'reconnecting');
      assert.match(await panel(page), /The network doctor says: The TAP is on no bridge\./);
      await look(page, 'close-1014-finding');
    }));

  test('a desktop that was there comes back after 1011, and nothing of the old one stays', () =>
    scene({ allow: [FAILED_RFB], prepare: running }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      daemon.desktop = { close: [1011, 'The VM was lost.'] };
      daemon.closeDesktops(1011, 'The VM was lost.');
      await inState(page, 'reconnecting');
      daemon.desktop = { rfb: {} };
      await inState(page, 'connected');
      assert.equal(await page.locator('#desktop canvas').count(), 1);
    }));

  test('the back-off grows, is shown, and a button skips it', () =>
    scene({
      allow: [FAILED_RFB],
      prepare: (daemon) => {
        running(daemon);
        daemon.desktop = { close: [1014, 'No.'] };
      },
    }, async ({ daemon, page }) => {
      await until(() => daemon.attempts.length === 3);
      await page.waitForFunction(() => /Trying again in [34] s/.test(document.getElementById('countdown').textContent));
      await comeToWindow(page); // which skips nothing
      await until(() => daemon.attempts.length === 4);
      const gaps = daemon.attempts.slice(1).map((at, index) => at - daemon.attempts[index]);
      assert.ok(gaps[0] < gaps[1] && gaps[1] < gaps[2], `gaps ${gaps}`);
      await page.waitForFunction(() => /Trying again in \d+ s/.test(document.getElementById('countdown').textContent));
      const clicked = Date.now();
      await page.getByRole('button', { name: 'Reconnect now' }).click();
      await until(() => daemon.attempts.length === 5);
      assert.ok(Date.now() - clicked < 3000);
    }));

  test('a VM that dies while connected: its end takes over from the close code', () =>
    scene({ allow: [FAILED_RFB], prepare: running }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      Object.assign(daemon.vm, { state: 'failed', reason: 'QEMU was killed by signal 9' });
      daemon.closeDesktops(1011, 'The VM was lost.');
      await inState(page, 'failed');
      assert.match(await panel(page), /QEMU was killed by signal 9\./);
    }));

  test('a desktop that says nothing, asks for a password, or speaks something else', async (t) => {
    const wrong = [
      ['silent', { silent: true }, /does not answer.*has not said anything/s],
      ['password', { rfb: { password: true } }, /asks for a password/],
      ['garbage', { garbage: true }, /cannot be shown.*does not speak the protocol/s],
    ];
    for (const [name, desktop, pattern] of wrong)
      await t.test(name, () => scene({
        allow: [FAILED_RFB],
        prepare: async (daemon, page) => {
          running(daemon);
          daemon.desktop = desktop;
          if (name === 'silent') await page.clock.install();
        },
      }, async ({ daemon, page }) => {
        if (name === 'silent') {
          await until(() => daemon.attempts.length === 1);
          await page.clock.fastForward(20500);
        }
        await inState(page, 'reconnecting');
        assert.match(await panel(page), pattern);
        if (name !== 'silent') await look(page, `desktop-${name}`);
      }));
  });
});

describe('when the VM rests', { concurrency: AT_ONCE + 1 }, () => {
  const PUT_TO_REST = 'The VM is put to rest. The page comes back when it is woken.';
  const rest = (daemon) => {
    daemon.vm.state = 'hibernating';
    daemon.closeDesktops(1012, PUT_TO_REST);
  };
  /* A tab that nobody looks at, and that somebody comes back to. */
  const setHidden = (page, hidden) => page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { configurable: true, get: () => value });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
  /* The test ends this: parked.done(what comes of it). */
  const park = (daemon) => { daemon.wake = () => new Promise((resolve) => { daemon.wake.done = resolve; }); };

  test('a page that is open sees it, wakes nothing by itself, and shows the desktop when another has woken it', () =>
    scene({ allow: [FAILED_RFB], prepare: running }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      daemon.login = { flow: 'authorization-code', words: 'log in', opened: true, user_code: null, takes_code: false };
      rest(daemon);
      await inState(page, 'asleep');
      assert.equal(await page.locator('#login').isVisible(), false, 'the tool sleeps too');
      assert.match(await panel(page), /The desktop is asleep.*Its memory is being saved\..*wakes when you come back/s);
      asleep(daemon);
      await page.waitForFunction(() => /1024 MiB, was saved/.test(document.getElementById('text').textContent));
      assert.doesNotMatch(await panel(page), /restarts|Trying/);
      await page.keyboard.press('Enter'); // of somebody who was typing
      await page.keyboard.press('Space');
      assert.equal(await page.evaluate(() => document.activeElement.id), 'title');
      await page.keyboard.press('Tab');
      assert.equal(await page.evaluate(() => document.activeElement.id), 'wake', 'by keyboard too');
      await page.evaluate(() => document.activeElement.blur());
      assert.match(await page.title(), /^Asleep: /);
      await accessible(page);
      await look(page, 'asleep');
      await polled(daemon, 2);
      assert.equal(await page.evaluate(() => document.activeElement.tagName), 'BODY', 'the focus is left alone');
      assert.equal(daemon.count(WAKES), 0);
      daemon.vm.state = 'resuming';
      await inState(page, 'waking');
      assert.equal(await page.locator('#wake').isVisible(), false);
      await accessible(page);
      await look(page, 'waking');
      daemon.vm.state = 'running';
      await inState(page, 'connected');
      assert.equal(daemon.count(WAKES), 0);
      assert.equal(await page.evaluate(() => document.activeElement.tagName), 'CANVAS');
    }));

  test('who wants it wakes it', async (t) => {
    const wants = {
      'by the button': (page) => page.getByRole('button', { name: 'Wake it up' }).click(),
      'by coming back to the tab': (page) => setHidden(page, false),
      'by coming back to the window': comeToWindow,
      'by loading it again': (page) => page.reload(),
    };
    for (const [name, want] of Object.entries(wants))
      await t.test(name, () => scene({ allow: [FAILED_RFB], prepare: running }, async ({ daemon, page }) => {
        await inState(page, 'connected');
        if (name.endsWith('tab')) await setHidden(page, true);
        rest(daemon);
        asleep(daemon);
        await inState(page, 'asleep');
        park(daemon);
        await want(page);
        await inState(page, 'waking');
        await polled(daemon, 1);
        daemon.vm.state = 'running';
        daemon.wake.done();
        await inState(page, 'connected');
        assert.equal(daemon.count(WAKES), 1);
      }));
  });

  test('a page that is opened wakes it', () =>
    scene({ prepare: asleep }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      assert.equal(daemon.count(WAKES), 1);
    }));

  test('a status that is older than the answer that it is awake tells nothing of it', () =>
    scene({
      prepare: (daemon) => {
        asleep(daemon);
        park(daemon);
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'waking');
      await until(() => daemon.wake.done);
      const states = await page.evaluateHandle(() => {
        const seen = [];
        new MutationObserver(() => seen.push(document.documentElement.dataset.state))
          .observe(document.documentElement, { attributeFilter: ['data-state'] });
        return seen;
      });
      let release;
      const held = new Promise((resolve) => {
        page.route(`**/session/${SESSION_ID}`, async (route) => {
          const response = await route.fetch();
          resolve();
          await new Promise((done) => { release = done; });
          await route.fulfill({ response });
        }, { times: 1 });
      });
      await held;
      daemon.vm.state = 'running';
      const woken = page.waitForResponse('**/wake');
      daemon.wake.done();
      await (await woken).finished();
      await settled(page);
      release();
      await inState(page, 'connected');
      assert.ok(!(await states.jsonValue()).includes('asleep'), await states.jsonValue());
    }));

  test('one that is at rest although it was woken can be woken again, and an answer that came too late wakes nothing', () =>
    scene({
      allow: [FAILED_REQUEST, FAILED_RFB],
      prepare: (daemon) => {
        asleep(daemon);
        daemon.wake = () => {};
      },
    }, async ({ daemon, page }) => {
      await until(() => daemon.count(WAKES) === 1);
      park(daemon);
      await page.getByRole('button', { name: 'Wake it up' }).click();
      await until(() => daemon.wake.done);
      daemon.vm.state = 'running';
      await inState(page, 'connected');
      const late = page.waitForResponse('**/wake');
      daemon.wake.done({ status: 504, html: '<h1>Gateway Time-out</h1>' });
      await (await late).finished();
      rest(daemon);
      await inState(page, 'asleep');
      assert.match(await panel(page), /It was put to rest\./);
      assert.equal(daemon.count(WAKES), 2);
    }));

  test('a request to wake it that gets no answer is made again, later each time, or at once by the button', () => {
    const asked = [];
    return scene({
      allow: [FAILED_REQUEST],
      prepare: (daemon) => {
        asleep(daemon);
        daemon.wake = () => {
          asked.push(Date.now());
          return { status: 504, html: '<h1>Gateway Time-out</h1>' };
        };
      },
    }, async ({ page }) => {
      await page.waitForFunction(() => /not awake yet/.test(document.getElementById('title').textContent));
      await until(() => asked.length === 3);
      const gaps = asked.slice(1).map((at, index) => at - asked[index]);
      assert.ok(gaps[0] >= 1000 && gaps[1] >= 1600, `gaps ${gaps}`);
      await page.getByRole('button', { name: 'Try again' }).click();
      await until(() => asked.length === 4);
      assert.ok(asked[3] - asked[2] < 3000);
    });
  });

  test('a controller that restarts meanwhile is asked again, once', () =>
    scene({
      allow: [FAILED_REQUEST],
      prepare: (daemon) => {
        asleep(daemon);
        park(daemon);
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'waking');
      await until(() => daemon.wake.done);
      await page.evaluate(() => import('/static/novnc/core/rfb.js')); // a part that is missing is another test
      await daemon.stop();
      await inState(page, 'offline');
      await daemon.restart();
      await until(() => daemon.count(WAKES) === 2);
      daemon.vm.state = 'running';
      daemon.wake.done();
      await inState(page, 'connected');
      assert.equal(daemon.count(WAKES), 2);
    }));

  test('a tab that nobody looks at wakes nothing, nor one that was looked at, and shows it when another has woken it', () =>
    scene({
      allow: [FAILED_REQUEST],
      prepare: async (daemon, page) => {
        asleep(daemon);
        await page.addInitScript(() => {
          Object.defineProperty(document, 'hidden', { configurable: true, get: () => true });
        });
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'asleep');
      daemon.problem = { status: 500 };
      await inState(page, 'offline');
      await setHidden(page, false);
      await setHidden(page, true);
      daemon.problem = null;
      await page.evaluate(() => dispatchEvent(new Event('online')));
      await inState(page, 'asleep');
      await polled(daemon, 1);
      assert.equal(daemon.count(WAKES), 0);
      daemon.vm.state = 'running'; // by another
      await inState(page, 'connected');
      assert.equal(daemon.count(WAKES), 0);
    }));

  test('one that cannot be woken says why, and is asked again', () =>
    scene({
      allow: [FAILED_REQUEST],
      prepare: (daemon) => {
        asleep(daemon);
        park(daemon);
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'waking');
      await until(() => daemon.wake.done);
      await comeToWindow(page); // it is asked for already
      daemon.wake.done({ status: 409, detail: 'there is no room for 1024 MiB', hint: 'end another VM' });
      await page.waitForFunction(() => /cannot be woken/.test(document.getElementById('title').textContent));
      assert.match(await panel(page), /There is no room for 1024 MiB\..*End another VM\./s);
      await accessible(page);
      await look(page, 'asleep-refused');
      assert.equal(daemon.count(WAKES), 1);
      daemon.wake = () => { daemon.vm.state = 'running'; };
      await page.getByRole('button', { name: 'Try again' }).click();
      await inState(page, 'connected');
      assert.equal(daemon.count(WAKES), 2);
    }));
});

describe('when the controller is gone', { concurrency: AT_ONCE }, () => {
  test('it says so, tries again, and connects by itself when it is back', () =>
    scene({ allow: [FAILED_REQUEST, FAILED_SOCKET, FAILED_RFB], prepare: running }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      await daemon.stop();
      await inState(page, 'offline');
      assert.match(await panel(page), /The controller does not answer.*trying again/s);
      await page.waitForFunction(() => /Trying again in \d+ s/.test(document.getElementById('countdown').textContent));
      await accessible(page);
      await look(page, 'offline');
      await daemon.restart();
      await inState(page, 'connected');
    }));

  test('one that said that it restarts is waited for; when it stays away it does not answer', () =>
    scene({ allow: [FAILED_REQUEST, FAILED_SOCKET, FAILED_RFB], prepare: running }, async ({ daemon, page }) => {
      await inState(page, 'connected');
      daemon.closeDesktops(1012, 'The controller restarts. The page comes back by itself.');
      await daemon.stop();
      await inState(page, 'reconnecting');
      await page.waitForFunction(() => /Trying again in \d+ s/.test(document.getElementById('countdown').textContent));
      assert.match(await panel(page), /The controller restarts\./);
      await accessible(page);
      await look(page, 'restarts');
      await inState(page, 'offline');
      await daemon.restart();
      await inState(page, 'connected');
    }));

  test('a socket that is cut while the controller answers', () =>
    scene({
      allow: [FAILED_SOCKET, FAILED_RFB],
      prepare: (daemon) => {
        running(daemon);
        daemon.desktop = { cut: true };
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'reconnecting');
      assert.match(await panel(page), /The connection broke/);
      await look(page, 'close-1006');
      daemon.desktop = { rfb: {} };
      await inState(page, 'connected');
    }));

  test('a controller that only gives errors', () =>
    scene({
      allow: [FAILED_REQUEST],
      prepare: (daemon) => {
        daemon.problem = { status: 500, detail: 'the store is locked', hint: 'Look at the journal' };
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'offline');
      assert.match(await panel(page), /has a problem.*The store is locked\..*Look at the journal\./s);
      await look(page, 'trouble');
      daemon.problem = null;
      await inState(page, 'booting');
    }));

  test('a part of the page that cannot be loaded', () =>
    scene({
      allow: [FAILED_REQUEST],
      prepare: (daemon) => {
        running(daemon);
        daemon.brokenFiles.add('novnc/core/display.js');
      },
    }, async ({ daemon, page }) => {
      await inState(page, 'offline');
      assert.match(await panel(page), /A part of the page could not be loaded/);
      daemon.brokenFiles.clear();
      await inState(page, 'connected'); // it loaded itself again
    }));

  test('a page whose script does not run still says something', () =>
    scene({ hash: '', context: { javaScriptEnabled: false } }, async ({ page }) => {
      assert.match(await panel(page), /Loading the page.*reload the page/s);
      await page.screenshot({ path: path.join(OUT, 'no-script-1280.png') });
    }));
});

test('no motion where a person asks for none', () =>
  scene({ context: { reducedMotion: 'reduce' } }, async ({ page }) => {
    await inState(page, 'booting');
    assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
  }));

const desktopTop = (page) => page.evaluate(() => document.getElementById('desktop').getBoundingClientRect().top);

function canvasSize(page) {
  return page.evaluate(() => {
    const { width, height } = document.querySelector('#desktop canvas');
    return { width, height };
  });
}

function colours(page) {
  return page.evaluate(() => {
    const canvas = document.querySelector('#desktop canvas');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
  });
}

async function until(condition) {
  const end = Date.now() + WAIT_MS;
  while (!condition()) {
    assert.ok(Date.now() < end, `never true: ${condition}`);
    await new Promise((resolve) => { setTimeout(resolve, 20); });
  }
}
