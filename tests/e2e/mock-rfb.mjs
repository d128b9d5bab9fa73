/* The smallest VNC server that noVNC can talk to, over a WebSocket: RFB 3.8, no security, raw encoding.
 * Its desktop is a colour pattern with a square in the middle that changes with every key and click.
 * Source: RFC 6143.
 */

const WIDTH = 800;
const HEIGHT = 600;
const SQUARE = 96;

const RAW = 0;
const TIGHT_PNG = -260;
const CURSOR = -239;

/* One pixel, as Tight sends a PNG: control byte, length, image. noVNC shows it through a data: URL, which the
 * page's policy must allow. */
const PNG_BYTES = Buffer.from('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA'
  + 'AABJRU5ErkJggg==', 'base64');
const PNG = Buffer.concat([Buffer.from([0xa0, PNG_BYTES.length]), PNG_BYTES]);

/* Length of a client's message by its type; a function where the message says it itself. RFC 6143 7.5. */
const MESSAGES = {
  0: () => 20,                                                                     // SetPixelFormat
  2: (bytes) => (bytes.length < 4 ? Infinity : 4 + 4 * bytes.readUInt16BE(2)),     // SetEncodings
  3: () => 10,                                                                     // FramebufferUpdateRequest
  4: () => 8,                                                                      // KeyEvent
  5: () => 6,                                                                      // PointerEvent
  6: (bytes) => (bytes.length < 8 ? Infinity : 8 + Math.abs(bytes.readInt32BE(4))), // ClientCutText
};

export class RfbServer {
  keys = [];        // {keysym, down}
  clicks = [];      // {x, y}
  #client;
  #options;
  #received = Buffer.alloc(0);
  #phase = 'version';
  #tone = 0;        // of the square
  #asked = false;   // an update is asked for
  #dirty = true;    // and there is something to send

  /* options: {black: true}: a desktop on which nothing is drawn; {password: true}: it asks for one;
   * {frozen: true}: it never changes */
  constructor(client, options = {}) {
    this.#client = client;
    this.#options = options;
    client.on('message', (data) => {
      this.#received = Buffer.concat([this.#received, data]);
      while (this.#step());
    });
    this.#send(Buffer.from('RFB 003.008\n'));
  }

  /* The desktop changes by itself: black becomes a picture. */
  draw() {
    this.#options = {};
    this.#changed();
  }

  #step() {
    switch (this.#phase) {
    case 'version':
      return this.#take(12, () => {
        this.#phase = 'security';
        this.#send(Buffer.from([1, this.#options.password ? 2 : 1]));
      });
    case 'security':
      return this.#take(1, () => {
        this.#phase = 'init';
        this.#send(this.#options.password ? Buffer.alloc(16, 7) : Buffer.from([0, 0, 0, 0]));
      });
    case 'init':
      return this.#take(1, () => {
        this.#phase = 'normal';
        this.#send(serverInit('mock desktop'));
      });
    default:
      return this.#message();
    }
  }

  #message() {
    if (this.#received.length === 0) return false;
    const length = MESSAGES[this.#received[0]];
    if (!length) throw new Error(`RFB message of type ${this.#received[0]}`);
    return this.#take(length(this.#received), (bytes) => {
      if (bytes[0] === 3) {
        this.#asked = true;
        if (bytes[1] === 0) this.#dirty = true;
        this.#update();
      } else if (bytes[0] === 4) {
        this.keys.push({ keysym: bytes.readUInt32BE(4), down: bytes[1] === 1 });
        this.#changed();
      } else if (bytes[0] === 5 && bytes[1] !== 0) {
        this.clicks.push({ x: bytes.readUInt16BE(2), y: bytes.readUInt16BE(4) });
        this.#changed();
      }
    });
  }

  #take(length, use) {
    if (this.#received.length < length) return false;
    const bytes = this.#received.subarray(0, length);
    this.#received = this.#received.subarray(length);
    use(bytes);
    return true;
  }

  #changed() {
    if (this.#options.frozen) return;
    this.#tone += 1;
    this.#dirty = true;
    this.#update();
  }

  #update() {
    if (!this.#asked || !this.#dirty) return;
    this.#asked = false;
    this.#dirty = false;
    const rectangles = [rectangle(0, 0, WIDTH, HEIGHT, RAW, this.#pixels())];
    if (!this.#options.black) rectangles.push(cursor(), rectangle(0, 0, 1, 1, TIGHT_PNG, PNG));
    const header = Buffer.alloc(4);
    header.writeUInt16BE(rectangles.length, 2);
    this.#send(Buffer.concat([header, ...rectangles]));
  }

  /* In the format that noVNC asks for: red in the lowest byte. */
  #pixels() {
    const pixels = Buffer.alloc(WIDTH * HEIGHT * 4);
    if (this.#options.black) return pixels;
    for (let y = 0, at = 0; y < HEIGHT; y++)
      for (let x = 0; x < WIDTH; x++, at += 4) {
        const inSquare = Math.abs(x - WIDTH / 2) < SQUARE && Math.abs(y - HEIGHT / 2) < SQUARE;
        pixels[at] = inSquare ? (60 + this.#tone * 45) % 256 : 30 + (x >> 3) % 64;
        pixels[at + 1] = inSquare ? 200 : 90 + (y >> 2) % 100;
        pixels[at + 2] = inSquare ? 90 : 140;
      }
    return pixels;
  }

  #send(bytes) {
    if (this.#client.readyState === this.#client.OPEN) this.#client.send(bytes);
  }
}

/* RFC 6143 7.6.1 */
function rectangle(x, y, width, height, encoding, bytes) {
  const header = Buffer.alloc(12);
  header.writeUInt16BE(x, 0);
  header.writeUInt16BE(y, 2);
  header.writeUInt16BE(width, 4);
  header.writeUInt16BE(height, 6);
  header.writeInt32BE(encoding, 8);
  return Buffer.concat([header, bytes]);
}

/* An 8 by 8 block, all of it opaque. RFC 6143 7.8.1. noVNC makes a data: URL of it. */
function cursor() {
  return rectangle(0, 0, 8, 8, CURSOR, Buffer.concat([Buffer.alloc(8 * 8 * 4, 0xc0), Buffer.alloc(8, 0xff)]));
}

/* Size, pixel format (32 bits, depth 24, true colour) and name. RFC 6143 7.3.2. */
function serverInit(name) {
  const bytes = Buffer.alloc(24 + name.length);
  bytes.writeUInt16BE(WIDTH, 0);
  bytes.writeUInt16BE(HEIGHT, 2);
  bytes.set([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 0, 8, 16], 4);
  bytes.writeUInt32BE(name.length, 20);
  bytes.write(name, 24, 'latin1');
  return bytes;
}
