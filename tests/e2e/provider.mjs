/* A real OpenID provider (oidc-provider) for the tests of logins: authorization code with PKCE, device flow, refresh tokens
 * that work once. Its pages are made to be used by who sees only pixels: each field and button has a colour of its own,
 * and a field that holds what it should another one (COLOURS in login.mjs).
 *
 *   node provider.mjs --issuer https://login.example.test --listen 203.0.113.1:443 --cert FILE --key FILE
 *
 * Standard output, a JSON line an event: {"event":"listening"}, what pages were shown and what was decided, who asked
 * /userinfo, and every secret that was issued, so that a test can search for it.
 */

import { readFileSync } from 'node:fs';
import https from 'node:https';
import { parseArgs } from 'node:util';
import { Provider } from 'oidc-provider';

const { values: given } = parseArgs({
  options: {
    issuer: { type: 'string' }, listen: { type: 'string' }, cert: { type: 'string' }, key: { type: 'string' },
  },
});
const say = (event, more = {}) => process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);

const page = (title, body) => `<!doctype html><html lang="en"><meta charset="utf-8"><title>${title}</title>
<style>
  body { margin: 0 auto; width: 900px; font: 28px sans-serif; }
  input, button { display: block; width: 900px; height: 70px; margin: 14px 0; border: 0; padding: 0 20px; font: inherit; box-sizing: border-box; }
  [name=login] { background: #ffd040; } [name=password] { background: #40d0ff; }
  [name=login]:valid { background: #ff8000; } [name=password]:valid { background: #4040ff; }
  .go { background: #10a010; } .allow { background: #0060d0; } .confirm { background: #a06010; } .no { background: #d01010; } .done { background: #8020c0; height: 200px; }
</style><h1>${title}</h1>${body}`;

const LOGIN = (uid) => page('Who are you?', `<form method="post" action="/interaction/${uid}/login" autocomplete="off">
<input name="login" pattern="anna|berta|carl" required><input name="password" type="password" pattern="pLaNtEd-password-[0-9]{4}" required><button class="go"></button></form>`);
const CONSENT = (uid) => page('May the tool log in?', `<form method="post" action="/interaction/${uid}/consent">
<button class="allow"></button></form><form method="post" action="/interaction/${uid}/abort"><button class="no"></button></form>`);

/* Tells every second that it is still the page that was opened, and what cookie its browser has. */
const ALIVE = page('Alive', `<div class="done"></div><script>
const born = crypto.randomUUID();
document.cookie = document.cookie || 'mark=' + born;
setInterval(() => fetch('/alive/' + born).catch(() => {}), 1000);
</script>`);

const ACCESS_TOKEN_S = 40; // mc-oidc renews what runs out within 30 s
const provider = new Provider(given.issuer, {
  clients: [{
    client_id: 'master-controller', application_type: 'native', token_endpoint_auth_method: 'none',
    grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
    response_types: ['code'], redirect_uris: ['http://127.0.0.1/callback'],
  }],
  cookies: { keys: ['test'] },
  features: {
    devInteractions: { enabled: false },
    deviceFlow: {
      enabled: true,
      userCodeInputSource: (ctx, form) => { ctx.body = page('Your code?', form); },
      userCodeConfirmSource: (ctx, form) => {
        say('device-confirm');
        ctx.body = page('Is it your tool?', `${form}<button class="confirm" type="submit" form="op.deviceConfirmForm"></button>`);
      },
      successSource: (ctx) => { ctx.body = page('Done', '<div class="done"></div>'); },
    },
  },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: { AccessToken: ACCESS_TOKEN_S, AuthorizationCode: 120, DeviceCode: 600, Grant: 3600, IdToken: 600,
    Interaction: 900, RefreshToken: 3600, Session: 3600 },
});
provider.proxy = false;

async function formOf(request) {
  let text = '';
  for await (const chunk of request) text += chunk;
  return new URLSearchParams(text);
}

async function consent(details) {
  const { prompt, params, session } = details;
  const grant = details.grantId ? await provider.Grant.find(details.grantId)
    : new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  if (prompt.details.missingOIDCScope) grant.addOIDCScope(prompt.details.missingOIDCScope.join(' '));
  if (prompt.details.missingOIDCClaims) grant.addOIDCClaims(prompt.details.missingOIDCClaims);
  return { consent: { grantId: await grant.save() } };
}

provider.use(async (ctx, next) => {
  const [, born] = /^\/alive(?:\/([\w-]+))?$/.exec(ctx.path) ?? [null];
  if (born) say('alive', { born, mark: ctx.cookies.get('mark') });
  if (!ctx.path.startsWith('/alive')) await next();
  else if (born) ctx.status = 204;
  else Object.assign(ctx, { type: 'html', body: ALIVE });
});

/* What the user does on our pages. */
provider.use(async (ctx, next) => {
  const match = /^\/interaction\/([\w-]+)(?:\/(login|consent|abort))?$/.exec(ctx.path);
  if (!match) {
    await next();
    return;
  }
  const details = await provider.interactionDetails(ctx.req, ctx.res);
  const [, uid, action] = match;
  if (!action) {
    say(`${details.prompt.name}-page`);
    ctx.type = 'html';
    ctx.body = details.prompt.name === 'login' ? LOGIN(uid) : CONSENT(uid);
    return;
  }
  const form = await formOf(ctx.req);
  say(action, { login: form.get('login') ?? undefined });
  const result = action === 'login' ? { login: { accountId: form.get('login') } }
    : action === 'consent' ? await consent(details) : { error: 'access_denied', error_description: 'refused' };
  ctx.redirect(await provider.interactionResult(ctx.req, ctx.res, result, { mergeWithLastSubmission: action !== 'abort' }));
});

/* What must be found nowhere. */
provider.use(async (ctx, next) => {
  await next();
  const { route } = ctx.oidc ?? {};
  if (route === 'token')
    say('token', { grant: ctx.oidc.params?.grant_type, error: ctx.body?.error, secrets: [ctx.body?.access_token, ctx.body?.refresh_token,
      ctx.body?.id_token, ctx.oidc.params?.code, ctx.oidc.params?.code_verifier, ctx.oidc.params?.device_code].filter(Boolean) });
  else if (route === 'device_authorization')
    say('device', { user_code: ctx.body.user_code, secrets: [ctx.body.device_code] });
  else if (route === 'authorization')
    say('authorization', { secrets: [ctx.query.state, ctx.query.nonce, ctx.query.code_challenge].filter(Boolean) });
  else if (route === 'userinfo')
    say('userinfo', { sub: ctx.body?.sub, status: ctx.status });
});
provider.on('server_error', (ctx, error) => say('server-error', { message: error.stack }));

const [host, port] = given.listen.split(':');
https.createServer({ cert: readFileSync(given.cert), key: readFileSync(given.key) }, provider.callback())
  .listen(Number(port), host, () => say('listening'));
