/* Proves a real session's desktop, as a person would find it: opens the page, waits for noVNC's `connect`, for a
 * picture (size, more than one colour) that has come to rest, then uses mouse and keyboard until the picture has
 * answered twice (once could be a page in the desktop that finished loading just then).
 *
 *   node desktop.mjs --url 'http://127.0.0.1:4000/api/auth/session/…/novnc#ticket=…' --out DIR
 *                    [--timeout-s 120] [--input-timeout-s 90]
 *
 * Standard output: one JSON line {ok, width, height, colours, connect_ms, picture_ms, changed, changed_pixels,
 * input, input_ms, blocked, reason}. Standard error: what it does, and on a failure why. Exit status 0 or 1; 2 usage.
 * DIR gets before.png and after.png (the page as a person sees it), or failed.png. The address is never printed:
 * it holds a ticket.
 */

import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { launch } from './browser.mjs';

const MIN_WIDTH = 640;
const MIN_HEIGHT = 480;
const MIN_PIXELS = 150;   // that a key or click must change: more than a blinking caret has
const ANSWERS = 2;        // that are wanted
const REST_MS = 3000;     // without a change: the picture has come to rest
const REST_MAX_MS = 30000; // some never do; they are used all the same
const QUIET_MS = 1500;    // watched before each input, to know what changes without one
const ANSWER_MS = 6000;   // from an input to its picture; an emulated guest is slow
const STEP_MS = 250;

/* What a person would try in a desktop with a browser window. Each is enough; none must leave a trace that
 * spoils the next. at: where on the desktop, in its own pixels. */
const INPUTS = [
  {
    name: 'Ctrl+L and letters',
    run: async ({ page, click, word }) => {
      await click((width, height) => [width / 2, height / 2]);
      await page.keyboard.press('Control+l');
      await page.keyboard.type(word, { delay: 60 });
    },
  },
  {
    name: 'a click in the address bar and letters',
    run: async ({ page, click, word }) => {
      await click((width) => [width * 0.3, 62]);
      await page.keyboard.type(word, { delay: 60 });
    },
  },
  {
    name: 'the right mouse button',
    run: async ({ click }) => click((width, height) => [width / 2, height * 0.6], 'right'),
    after: async ({ page }) => page.keyboard.press('Escape'),
  },
];

const WORDS = ['controller', 'master', 'desktop', 'machine'];

class Failure extends Error {}

const say = (text) => process.stderr.write(`desktop: ${text}\n`);
const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
const since = (start) => Math.round(performance.now() - start);

function options() {
  try {
    const { values } = parseArgs({
      options: {
        url: { type: 'string' }, out: { type: 'string' },
        'timeout-s': { type: 'string', default: '120' }, 'input-timeout-s': { type: 'string', default: '90' },
      },
    });
    const timeoutMs = Number(values['timeout-s']) * 1000;
    const inputTimeoutMs = Number(values['input-timeout-s']) * 1000;
    if (!values.url || !values.out) throw new Error('--url and --out are needed');
    if (!(timeoutMs > 0) || !(inputTimeoutMs > 0)) throw new Error('a time-out is a number of seconds');
    return { url: new URL(values.url), out: values.out, timeoutMs, inputTimeoutMs };
  } catch (error) {
    say(`${error.message}\nusage: node desktop.mjs --url URL --out DIR [--timeout-s 120] [--input-timeout-s 90]`);
    return process.exit(2);
  }
}

/* What the page says, for a message. */
async function pageWords(page) {
  return page.evaluate(() => {
    const text = (selector) => document.querySelector(selector)?.innerText?.replace(/\s+/g, ' ').trim() ?? '';
    return `state ${document.documentElement.dataset.state}: ${text('#panel') || text('header')}`;
  }).catch((error) => String(error.message).split('\n')[0]);
}

async function waitForConnect(page, deadline) {
  let said = '';
  for (;;) {
    const state = await page.evaluate(() => document.documentElement.dataset.state);
    if (state === 'connected') return;
    if (state !== said) say(`the page is ${said = state}`);
    if (['failed', 'ended', 'link'].includes(state)) throw new Failure(`no desktop: ${await pageWords(page)}`);
    if (performance.now() > deadline) throw new Failure(`no desktop in time: ${await pageWords(page)}`);
    await sleep(STEP_MS);
  }
}

/* Size and number of colours (counted up to 65536) of the desktop's canvas. */
function picture(page) {
  return page.evaluate(() => {
    const canvas = document.querySelector('#desktop canvas');
    if (!canvas?.width || !canvas.height) return { width: 0, height: 0, colours: 0 };
    const { width, height } = canvas;
    const pixels = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, width, height).data.buffer);
    const found = new Set();
    for (let i = 0; i < pixels.length && found.size < 65536; i++) found.add(pixels[i]);
    return { width, height, colours: found.size };
  });
}

async function waitForPicture(page, deadline, result) {
  for (;;) {
    const { width, height, colours } = Object.assign(result, await picture(page));
    if (width >= MIN_WIDTH && height >= MIN_HEIGHT && colours > 1) return;
    if (performance.now() > deadline)
      throw new Failure(`no picture in time: ${width}x${height}, ${colours} colour(s); ${await pageWords(page)}`);
    await sleep(STEP_MS);
  }
}

/* Keeps the picture of this moment in the page. */
function remember(page) {
  return page.evaluate(() => {
    const canvas = document.querySelector('#desktop canvas');
    if (!canvas) return;
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    globalThis.remembered = new Uint32Array(data.buffer);
  });
}

/* Pixels that differ from the remembered picture; -1 when the desktop is gone or has another size. */
function changedPixels(page) {
  return page.evaluate(() => {
    const canvas = document.querySelector('#desktop canvas');
    if (!canvas) return -1;
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const now = new Uint32Array(data.buffer);
    const then = globalThis.remembered;
    if (then?.length !== now.length) return -1;
    let count = 0;
    for (let i = 0; i < now.length; i++) if (now[i] !== then[i]) count++;
    return count;
  });
}

/* The most pixels that differ within ms, looked at every STEP_MS, or as soon as there are `enough`. */
async function watch(page, ms, enough = Infinity) {
  let most = 0;
  for (const end = performance.now() + ms; performance.now() < end && most < enough;) {
    await sleep(STEP_MS);
    const count = await changedPixels(page);
    if (count < 0) throw new Failure(`the desktop went away: ${await pageWords(page)}`);
    most = Math.max(most, count);
  }
  return most;
}

async function click(page, place, button = 'left') {
  const canvas = page.locator('#desktop canvas');
  const box = await canvas.boundingBox();
  const { width, height } = await picture(page);
  const [x, y] = place(width, height);
  await page.mouse.click(box.x + (x / width) * box.width, box.y + (y / height) * box.height, { button });
}

/* Waits until nothing changes by itself, within limits. */
async function rest(page) {
  for (const end = performance.now() + REST_MAX_MS; performance.now() < end;) {
    await remember(page);
    if (await watch(page, REST_MS, MIN_PIXELS) < MIN_PIXELS) return;
  }
  say('the picture does not come to rest');
}

/* Tries the inputs in turn until ANSWERS of them have changed the picture by more than it changes by itself. */
async function use(page, timeoutMs, result) {
  const start = performance.now();
  let answers = 0;
  for (let turn = 0; performance.now() < start + timeoutMs && answers < ANSWERS; turn++) {
    const input = INPUTS[turn % INPUTS.length];
    // Another word each time: the same one again would leave the same picture.
    const hand = { page, click: (...place) => click(page, ...place), word: WORDS[turn % WORDS.length] };
    await remember(page);
    const byItself = await watch(page, QUIET_MS);
    const enough = Math.max(MIN_PIXELS, 3 * byItself + 1);
    await remember(page);
    const began = performance.now();
    await input.run(hand);
    const count = await watch(page, ANSWER_MS, enough);
    say(`${input.name}: ${count} pixels changed (${byItself} by themselves)`);
    Object.assign(result, { input: input.name, changed_pixels: count, input_ms: since(began) });
    if (count >= enough) answers++;
    if (answers < ANSWERS) await input.after?.(hand);
  }
  result.changed = answers === ANSWERS;
  if (!result.changed) throw new Failure(`key and click changed the picture ${answers} times, not ${ANSWERS}`);
}

async function prove(page, { url, out, timeoutMs, inputTimeoutMs }, result) {
  const start = performance.now();
  const deadline = start + timeoutMs;
  await page.goto(url.href, { waitUntil: 'domcontentloaded', timeout: timeoutMs })
    .catch((error) => { throw new Failure(`the page does not load: ${/net::\w+/.exec(error.message) ?? 'no answer'}`); });
  await waitForConnect(page, deadline);
  result.connect_ms = since(start);
  say(`connected after ${result.connect_ms} ms`);
  await waitForPicture(page, deadline, result);
  result.picture_ms = since(start);
  say(`a picture of ${result.width}x${result.height} with ${result.colours} colours after ${result.picture_ms} ms`);
  await rest(page);
  await page.screenshot({ path: path.join(out, 'before.png') });
  await use(page, inputTimeoutMs, result);
  await sleep(500); // let it finish drawing, for the person who looks at it
  await page.screenshot({ path: path.join(out, 'after.png') });
  Object.assign(result, await picture(page));
  if (result.blocked.length) throw new Failure(`the page did what it must not: ${result.blocked.join('; ')}`);
}

/* Whatever the page's policy blocks, or what it asks of another origin. */
async function listen(page, origin, blocked) {
  page.on('console', (message) => {
    if (message.text().startsWith('policy: ')) blocked.push(message.text());
  });
  page.on('request', (request) => {
    const target = new URL(request.url());
    if (target.protocol !== 'data:' && target.host !== new URL(origin).host) blocked.push(`request to ${target.host}`);
  });
  await page.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) => {
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI.split('?')[0]}`);
    });
  });
}

async function main() {
  const given = options();
  const result = {
    ok: false, width: 0, height: 0, colours: 0, connect_ms: null, picture_ms: null,
    changed: false, changed_pixels: 0, input: null, input_ms: null, blocked: [], reason: null,
  };
  mkdirSync(given.out, { recursive: true });
  const browser = await launch();
  const page = await browser.newPage({ viewport: { width: 1280, height: 860 } });
  try {
    await listen(page, given.url.origin, result.blocked);
    await prove(page, given, result);
    result.ok = true;
  } catch (error) {
    result.reason = error instanceof Failure ? error.message : `${error.name}: ${error.message.split('\n')[0]}`;
    say(`failed: ${result.reason}`);
    await page.screenshot({ path: path.join(given.out, 'failed.png') }).catch(() => {});
  } finally {
    await browser.close();
  }
  process.stdout.write(`${JSON.stringify(result)}\n`);
  process.exitCode = result.ok ? 0 : 1;
}

await main();
