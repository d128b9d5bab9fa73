/* A daemon for the page's test: it serves the page's files with the headers that the real one sends, and says
 * whatever the test tells it to say. The contract is INTERFACE.md's; the real daemon is tested elsewhere with the
 * real page (desktop.mjs).
 *
 *   const daemon = await MockDaemon.start();
 *   daemon.vm.state = 'running';              // the status that the page is told
 *   daemon.problem = { status: 500, ... };    // or: an answer that is none
 *   daemon.desktop = { close: [1014, 'why'] } // what the WebSocket does: see `desktop`
 */

import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { WebSocketServer } from 'ws';
import { RfbServer } from './mock-rfb.mjs';

const WEB = fileURLToPath(new URL('../../web/', import.meta.url));
const NOVNC = path.join(WEB, 'node_modules/@novnc/novnc/');

/* What the real daemon sends with every page and static file. */
export const HEADERS = {
  'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    + "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    + "require-trusted-types-for 'script'; trusted-types 'none'",
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cache-Control': 'no-cache',
};

const TYPES = {
  '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8', '.svg': 'image/svg+xml',
};

export const SESSION_ID = '0123456789abcdef0123456789abcdef';
export const VM_ID = 'vm-69fac673-2f0e-4b1c-9d3a-5e8f7a6b4c2d';

export class MockDaemon {
  session = {
    id: SESSION_ID, user: 'demo', provider: 'demo', status: 'vm_created', vm_id: VM_ID, novnc_url: null,
    timeout_at: null, reason: null,
  };
  vm = {
    id: VM_ID, state: 'booting', state_since: ago(7), reason: null, reachable: null, finding: null,
    console_line: null, boot_deadline_at: ago(-113),
  };
  login = null;                        // what the status tells of the login tool
  loginUrl = null;                     // what oauth-url gives; null: 202
  refusal = null;                      // {status, detail, hint}: of open-url, code and cancel
  credential = { status: 'completed', stored: true, version: 1, updated_at: null, in_vm: null };
  bodies = [];                         // [path behind the session's, body] of each POST with one
  /* What comes of being asked to wake the VM: may change it, and give {status, detail, hint}, or {status, html} as a proxy
   * does that stands before the daemon. */
  wake = async () => {
    this.vm.state = 'resuming';
    await new Promise((resolve) => { setTimeout(resolve, 300); });
    this.vm.state = 'running';
  };
  problem = null;                      // {status, body}: instead of the status
  /* {rfb: options}, {close: [code, reason]}, {garbage: true}, {silent: true}, {cut: true} (no WebSocket at all), or
   * {handle: (client) => …} for a test's own */
  desktop = { rfb: {} };
  tickets = new Set(['good-ticket']);
  brokenFiles = new Set();             // paths under /static/ that answer 503
  cookie = randomBytes(16).toString('hex');
  requests = [];                       // "METHOD path"
  attempts = [];                       // times (ms) of WebSocket attempts
  rfb = null;                          // the RfbServer of the newest connection
  #server = null;
  #sockets = new Set();
  #websockets = new WebSocketServer({ noServer: true });

  static async start() {
    const daemon = new MockDaemon();
    await daemon.listen(0);
    return daemon;
  }

  async listen(port) {
    this.#server = http.createServer((request, response) => {
      this.#answer(request, response).catch((error) => response.destroy(error));
    });
    this.#server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
    });
    this.#server.on('upgrade', (...all) => this.#upgrade(...all));
    await new Promise((resolve, reject) => {
      this.#server.once('error', reject).listen(port, '127.0.0.1', resolve);
    });
    this.port = this.#server.address().port;
    this.origin = `http://127.0.0.1:${this.port}`;
  }

  /* As a daemon that dies: every connection is cut, WebSockets without a Close. */
  async stop() {
    const closed = new Promise((resolve) => { this.#server.close(resolve); });
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  restart() {
    return this.listen(this.port);
  }

  pageUrl(hash = '') {
    return `${this.origin}/api/auth/session/${SESSION_ID}/novnc${hash}`;
  }

  /* Every desktop connection ends in this way. */
  closeDesktops(code, reason = '') {
    for (const client of this.#websockets.clients) client.close(code, reason);
  }

  count(line) {
    return this.requests.filter((one) => one === line).length;
  }

  async #answer(request, response) {
    const { pathname } = new URL(request.url, this.origin);
    this.requests.push(`${request.method} ${pathname}`);
    const base = `/api/auth/session/${SESSION_ID}`;
    if (request.method === 'GET' && pathname === `${base}/novnc`) return this.#file(response, WEB, 'session.html');
    if (request.method === 'GET' && pathname.startsWith('/static/')) return this.#static(response, pathname);
    if (request.method === 'POST' && pathname === `${base}/ticket`) return this.#ticket(request, response, base);
    if (request.method === 'GET' && pathname === base) return this.#status(request, response);
    if (request.method === 'POST' && pathname === `${base}/heartbeat`) return this.#heartbeat(request, response);
    if (request.method === 'POST' && pathname === `${base}/wake`) return this.#wake(request, response);
    if (pathname.startsWith(`${base}/`)) return this.#loginPart(request, response, pathname.slice(base.length + 1));
    return problem(response, 404, 'not_found', 'No such session.');
  }

  #static(response, pathname) {
    const name = pathname.slice('/static/'.length);
    if (this.brokenFiles.has(name)) return problem(response, 503, 'busy', 'Busy.');
    if (name.startsWith('novnc/')) return this.#file(response, NOVNC, name.slice('novnc/'.length));
    return this.#file(response, path.join(WEB, 'static/'), name);
  }

  async #file(response, folder, name) {
    const file = path.resolve(folder, name);
    if (!file.startsWith(folder)) return problem(response, 404, 'not_found', 'No such file.');
    const bytes = await readFile(file).catch(() => null);
    if (!bytes) return problem(response, 404, 'not_found', 'No such file.');
    response.writeHead(200, { ...HEADERS, 'Content-Type': TYPES[path.extname(name)] ?? 'application/octet-stream' });
    return response.end(bytes);
  }

  async #ticket(request, response, base) {
    let body = '';
    for await (const part of request) body += part;
    const { ticket } = JSON.parse(body);
    if (request.headers['content-type'] !== 'application/json' || !this.tickets.delete(ticket))
      return problem(response, 401, 'ticket_refused', 'The ticket is not known.');
    response.writeHead(204, {
      'Set-Cookie': `mc_session=${this.cookie}; HttpOnly; SameSite=Strict; Path=${base}`,
    });
    return response.end();
  }

  #status(request, response) {
    if (!this.#admitted(request)) return problem(response, 401, 'unauthorized', 'No cookie.');
    if (this.problem) return problem(response, this.problem.status, 'mock', this.problem.detail, this.problem.hint);
    response.writeHead(200, { 'Content-Type': 'application/json', 'Cache-Control': 'no-store' });
    return response.end(JSON.stringify({ session: this.session, vm: this.vm, login: this.login }));
  }

  async #loginPart(request, response, part) {
    if (!this.#admitted(request)) return problem(response, 401, 'unauthorized', 'No cookie.');
    const say = (status, body) => {
      response.writeHead(status, { 'Content-Type': 'application/json' });
      response.end(JSON.stringify(body));
    };
    if (request.method === 'GET' && part === 'oauth-url')
      return say(this.loginUrl ? 200 : 202, { url: this.loginUrl, words: 'the tool starts' });
    if (request.method === 'GET' && part === 'credentials/status') return say(200, this.credential);
    if (request.method !== 'POST' || !['open-url', 'code', 'cancel'].includes(part))
      return problem(response, 404, 'not_found', 'No such route.');
    let body = '';
    for await (const piece of request) body += piece;
    this.bodies.push([part, JSON.parse(body)]);
    if (this.refusal) return problem(response, this.refusal.status, 'mock', this.refusal.detail, this.refusal.hint);
    if (part === 'cancel') Object.assign(this.session, { status: 'cancelled', reason: JSON.parse(body).reason });
    return say(200, { done: true });
  }

  async #wake(request, response) {
    if (!this.#admitted(request)) return problem(response, 401, 'unauthorized', 'No cookie.');
    const refusal = await this.wake();
    if (refusal?.html) {
      response.writeHead(refusal.status, { 'Content-Type': 'text/html' });
      return response.end(refusal.html);
    }
    if (refusal) return problem(response, refusal.status, 'mock', refusal.detail, refusal.hint);
    return this.#status(request, response);
  }

  #heartbeat(request, response) {
    if (!this.#admitted(request)) return problem(response, 401, 'unauthorized', 'No cookie.');
    if (this.problem) return problem(response, this.problem.status, 'mock', this.problem.detail, this.problem.hint);
    response.writeHead(200, { 'Content-Type': 'application/json' });
    return response.end('{}');
  }

  #admitted(request) {
    return (request.headers.cookie ?? '').split('; ').includes(`mc_session=${this.cookie}`);
  }

  #upgrade(request, socket, head) {
    this.attempts.push(Date.now());
    if (this.desktop.cut) return socket.destroy();
    return this.#websockets.handleUpgrade(request, socket, head, (client) => {
      const origin = request.headers.origin === this.origin;
      if (!origin || !this.#admitted(request)) client.close(4401, 'No valid cookie was given.');
      else if (this.desktop.close) client.close(...this.desktop.close);
      else if (this.desktop.handle) this.desktop.handle(client);
      else if (this.desktop.garbage) client.send(Buffer.from('HTTP/1.0 400 What?\r\n\r\n'));
      else if (this.desktop.rfb) this.rfb = new RfbServer(client, this.desktop.rfb);
      // silent: nothing at all is said
    });
  }
}

function problem(response, status, code, detail, hint) {
  response.writeHead(status, { 'Content-Type': 'application/problem+json' });
  response.end(JSON.stringify({ type: 'about:blank', status, code, title: code, detail, hint }));
}

/* The moment that was so many seconds ago, as the API writes it. */
export function ago(seconds) {
  return new Date(Date.now() - seconds * 1000).toISOString().replace(/\.\d+Z$/, 'Z');
}
