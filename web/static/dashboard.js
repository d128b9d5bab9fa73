/* The operator's dashboard: who is there, then everything once, then what changes, as it changes.
 *
 *   admin token  ->  cookie  ->  lists  <-  event stream
 */

import { $, Board, put } from './board.js';
import { BridgePicture } from './bridge.js';
import { Inventory, MARKS } from './inventory.js';
import { Stream, call, now } from './operator.js';
import { clean, sentence } from './state.js';
import { Story } from './story.js';

const STATUS_MS = 10000; // between looks at host, disk and findings, whatever the stream says
const DRAW_MS = 250;     // at most so often, however much happens
const LEGEND = [['good', 'well'], ['busy', 'on its way'], ['bad', 'something is wrong'], ['done', 'at rest: asleep, in the pool, or not a VM']];
const HOW_TO_POINT = 'Choose a port to read the story of its VM. Arrow keys go from port to port.';
const WORDS = { loading: 'Loading', live: 'Live', lost: 'Connecting again', offline: 'No answer', login: 'Signed out' };
const TONES = { loading: 'busy', live: 'good', lost: 'busy', offline: 'bad', login: 'done' };

class Dashboard {
  #inventory = new Inventory();
  #board = new Board();
  #story = new Story();
  #stream = new Stream();
  #picture = new BridgePicture($('bridge'));
  #waiting = null;   // changes that came while the lists are loaded
  #drawAt = 0;
  #drawTimer = null;
  #networkTimer = null;

  constructor() {
    this.#board.onChoose = (id) => this.#choose(id);
    this.#picture.onChoose = (id) => this.#choose(id);
    this.#picture.onPoint = (words) => put($('port-words'), words || HOW_TO_POINT);
    this.#story.onClose = () => this.#choose('');
    this.#story.findingOf = (id) => this.#inventory.findingOf(id);
    this.#stream.onHello = (reset) => this.#hello(reset);
    this.#stream.onChange = (change) => this.#changed(change);
    this.#stream.onNetwork = () => this.#loadNetworkSoon();
    this.#stream.onLost = () => this.#lost();
    $('login').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#login();
    });
    $('leave').addEventListener('click', () => this.#leave());
    $('filter').addEventListener('input', () => this.#draw());
    $('filter').addEventListener('keydown', (event) => {
      const id = $('filter').value.trim();
      if (event.key === 'Enter' && /^vm-[0-9a-f-]+$/.test(id)) this.#choose(id);
    });
    addEventListener('hashchange', () => this.#followAddress());
    $('legend').replaceChildren(...LEGEND.map(([tone, words]) => {
      const item = document.createElement('li');
      item.className = tone;
      item.textContent = `${MARKS[tone]} ${words}`;
      return item;
    }));
    setInterval(() => this.#lookAgain(), STATUS_MS);
  }

  async start() {
    const answer = await call('/api/status');
    if (answer.kind === 'refused') this.#showLogin();
    else this.#stream.open(); // and if nobody answers, it says so and goes on trying
  }

  #set(state) {
    const { dataset } = document.documentElement;
    dataset.state = state;
    dataset.tone = TONES[state];
    put($('state-words'), WORDS[state]);
    put($('findings-none'), state === 'live' ? 'Everything is as it should be.' : 'Nothing was known to be wrong.');
    $('waiting').hidden = true;
    $('login').hidden = state !== 'login';
    $('leave').hidden = state === 'login';
    if (state === 'login') $('board').hidden = true;
  }

  #trouble(text) {
    put($('trouble'), text);
    $('trouble').hidden = !text;
  }

  /* ---- in and out ---- */

  #showLogin(why = '') {
    this.#stream.close();
    this.#story.close();
    this.#trouble('');
    this.#set('login');
    put($('login-error'), why);
    $('token').focus();
  }

  async #login() {
    const answer = await call('/api/admin/dashboard', { method: 'POST', body: { token: $('token').value.trim() } });
    $('token').value = '';
    if (answer.kind === 'ok') {
      put($('login-error'), '');
      this.#set('loading');
      this.#stream.open();
      return;
    }
    const words = answer.kind === 'offline' ? 'The controller does not answer.' : sentence(answer.detail);
    put($('login-error'), `${words} ${sentence(answer.hint)}`.trim());
    $('token').focus();
  }

  async #leave() {
    await call('/api/admin/dashboard', { method: 'DELETE' });
    history.replaceState(null, '', location.pathname);
    location.reload(); // nothing of what was seen stays in the page
  }

  /* ---- what is there ---- */

  async #hello(reset) {
    if (!reset && this.#inventory.status) {
      this.#loadNetworkSoon();
    } else {
      const came = await this.#loadAll();
      if (came === null) return; // the hello that came meanwhile does it
      if (!came) {
        this.#stream.retry();
        this.#lost();
        return;
      }
    }
    if (document.documentElement.dataset.state === 'login') return;
    this.#set('live');
    this.#trouble('');
    $('board').hidden = false;
    this.#draw();
    this.#followAddress();
  }

  /* Return: whether all of it came; null where another one has begun meanwhile. */
  async #loadAll() {
    const waiting = this.#waiting = [];
    const [vms, sessions, status] = await Promise.all([
      call('/api/vms'), call('/api/auth/sessions'), this.#loadNetwork()]);
    if (this.#waiting !== waiting) return null;
    if (vms.kind === 'ok') this.#inventory.setVms(vms.body.vms);
    if (sessions.kind === 'ok') this.#inventory.setSessions(sessions.body.sessions);
    for (const change of waiting) this.#inventory.apply(change);
    this.#waiting = null;
    return [vms, sessions, status].every(({ kind }) => kind === 'ok');
  }

  async #loadNetwork() {
    const [status, network] = await Promise.all([call('/api/status'), call('/api/network')]);
    if (status.kind === 'ok') this.#inventory.status = status.body;
    if (network.kind === 'ok') Object.assign(this.#inventory, network.body);
    if (status.kind === 'refused') this.#showLogin('You were signed out: the cookie is too old, or there is a new token.');
    return status.kind === 'ok' ? network : status;
  }

  /* Changes come in crowds: one look for all of them. */
  #loadNetworkSoon() {
    this.#networkTimer ??= setTimeout(async () => {
      this.#networkTimer = null;
      await this.#loadNetwork();
      this.#story.refresh();
      this.#draw();
    }, 2 * DRAW_MS);
  }

  /* A stream that hangs tells nothing: this does. */
  async #lookAgain() {
    if (document.documentElement.dataset.state === 'login' || document.hidden) return;
    const answer = await this.#loadNetwork();
    if (answer.kind === 'offline') {
      this.#lost(true);
      this.#stream.open();
    }
    this.#draw();
  }

  #changed(change) {
    if (this.#waiting) this.#waiting.push(change);
    else this.#inventory.apply(change);
    if (change.about === this.#story.id) this.#story.refresh();
    this.#draw();
  }

  async #lost(sure = false) {
    if (document.documentElement.dataset.state === 'login') return;
    this.#set(sure ? 'offline' : 'lost');
    const answer = sure ? { kind: 'offline' } : await call('/api/status');
    if (answer.kind === 'refused') {
      this.#showLogin('You were signed out: the cookie is too old, or there is a new token.');
    } else if (document.documentElement.dataset.state === 'lost' || sure) {
      if (answer.kind === 'offline') this.#set('offline');
      this.#trouble(answer.kind === 'offline'
        ? 'The controller does not answer. What is shown is what was known last; the page goes on trying. '
          + 'On its host: systemctl status master-controller'
        : `${sentence(answer.detail, 'The event stream is not there.')} ${sentence(answer.hint, 'The page tries again.')}`);
    }
  }

  /* ---- on the page ---- */

  #draw() {
    if (this.#drawTimer) return;
    this.#drawTimer = setTimeout(() => {
      this.#drawTimer = null;
      this.#drawAt = performance.now();
      this.#drawNow();
    }, Math.max(0, this.#drawAt + DRAW_MS - performance.now()));
  }

  #drawNow() {
    const { network } = this.#inventory;
    if (!network || $('board').hidden) return;
    this.#board.show(this.#inventory, now(), $('filter').value);
    const ports = this.#inventory.portViews();
    const bad = ports.filter(({ tone }) => tone === 'bad').length;
    const bridge = `${clean(network.bridge, 16)} ${clean(network.address, 40)}/${Number(network.prefix_length)}`;
    put($('bridge-words'), `${network.ports} ${network.ports === 1 ? 'port' : 'ports'}, `
      + `${bad ? `${bad} red` : 'none red'}; MAC ${clean(network.mac, 20)}`
      + `${network.namespace ? `, in namespace ${clean(network.namespace, 64)}` : ''}.`
      + `${network.problem ? ` ${sentence(network.problem)}` : ''}`);
    this.#picture.show({
      bridge, uplink: network.uplink && `${clean(network.uplink, 20)}${network.masquerade ? ', masqueraded' : ''}`,
      broken: Boolean(network.problem), ports,
    });
    const findings = this.#inventory.findings.length;
    document.title = findings ? `(${findings}) Master Controller` : 'Master Controller';
  }

  /* The chosen VM is in the address: it can be sent to a colleague, and Back works. */
  #choose(id) {
    if (id && location.hash.slice(1) === id) this.#followAddress();
    else if (id) location.hash = id;
    else history.replaceState(null, '', location.pathname), this.#story.close();
  }

  #followAddress() {
    const id = decodeURIComponent(location.hash.slice(1));
    if (/^vm-[0-9a-f-]{1,36}$/.test(id)) this.#story.open(id);
    else if (this.#story.id) this.#story.close();
  }
}

await new Dashboard().start();
