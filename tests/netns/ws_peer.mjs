// npm `ws` as one end of a relayed WebSocket, strict as it is. Reads a job (relay_peers.py) as JSON from standard input,
// says "up" when a server listens, and prints what it saw as one line of JSON.
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { WebSocket, WebSocketServer } from "../e2e/node_modules/ws/wrapper.mjs";

const job = JSON.parse(await new Response(process.stdin).text());

const digest = data => createHash("sha1").update(data).digest("hex");

// As content() of relay_peers.py.
function content({ text, size, seed }) {
    const bytes = size ? createHash("shake128", { outputLength: size }).update(String(seed)).digest() : Buffer.alloc(0);
    return text ? Buffer.from(Array.from(bytes, b => job.alphabet[b]).join("")) : bytes;
}

// Fragments are cut in the middle of characters, too. They are sent as bytes, so the first must say what it is.
async function send(ws, message) {
    const data = content(message);
    const cuts = [...message.cuts, data.length];
    let at = 0;
    for (const [i, cut] of cuts.entries()) {
        const end = Math.max(at, Math.min(cut, data.length));
        if (message.pings[i])
            ws.ping(message.pings[i]);
        await new Promise((done, fail) => ws.send(data.subarray(at, end), { binary: !message.text, fin: i === cuts.length - 1 },
            error => error ? fail(error) : done()));
        at = end;
    }
}

async function play(ws) {
    const seen = { received: [], pongs: [] };
    const ended = new Promise(done => ws.on("close", (code, reason) => done([code, reason.toString()])));
    const all = new Promise(done => ws.on("message", async (data, binary) => {
        seen.received.push([binary ? "binary" : "text", data.length, digest(data)]);
        if (job.slow && seen.received.length % 4 === 0) {
            ws.pause();
            await sleep(30);
            ws.resume();
        }
        if (seen.received.length === job.expect)
            done();
    }));
    const wanted = job.send.flatMap(m => m.pings).filter(p => p).length;
    const ponged = wanted ? new Promise(done => ws.on("pong", data => seen.pongs.push(data.toString()) === wanted && done())) : null;
    ws.on("error", error => { seen.error = error.message; });
    if (ws.readyState === WebSocket.CONNECTING)
        await once(ws, "open");
    seen.protocol = ws.protocol;
    const work = (async () => {
        for (const message of job.send)
            await send(ws, message);
        await all;
        await ponged;
        if (job.role === "client")
            ws.close(...job.close);
    })();
    await Promise.race([work, ended]);
    seen.close = await ended;
    return seen;
}

function closing(protocol) {
    const ws = new WebSocket(job.url, [protocol], { headers: job.headers });
    ws.on("error", () => {});
    return new Promise(done => ws.on("close", (code, reason) => done([protocol, [code, reason.toString(), ws.protocol]])));
}

if (job.role === "client") {
    const ws = new WebSocket(job.url, ["binary"], { headers: job.headers });
    console.log(JSON.stringify(await play(ws)));
} else if (job.role === "closings") {
    console.log(JSON.stringify(Object.fromEntries(await Promise.all(job.protocols.map(closing)))));
} else {
    const http = createServer();
    const server = new WebSocketServer({ server: http, handleProtocols: offered => [...offered][0] });
    http.listen(job.path);
    await once(http, "listening");
    console.log("up");
    const [ws] = await once(server, "connection");
    console.log(JSON.stringify(await play(ws)));
    http.closeAllConnections();
    http.close();
}
