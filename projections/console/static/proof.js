// Verifies that an event is in the signed log, in this browser, from the bytes alone: the hash of
// the entry (RFC 6962), the way to the root, the signed note (C2SP), and its Ed25519 signature.

const ENVELOPE = [
  "offset", "stream", "version", "event_id", "type", "schema_version", "recorded_at", "occurred_at",
];

const text = new TextEncoder();

class Unproved extends Error {}

function require(holds, reason) {
  if (!holds) throw new Unproved(reason);
}

function joined(...parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", joined(...parts)));
}

/** Bytes of base64 in its usual form alone, so that no letter of it can be changed. */
function decoded(base64, what) {
  let binary = null;
  try {
    binary = atob(base64);
  } catch {
    throw new Unproved(`${what} is not base64`);
  }
  require(btoa(binary) === base64, `${what} is not base64 in its usual form`);
  return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
}

const encoded = (bytes) => btoa(String.fromCharCode(...bytes));
const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const same = (one, other) => hex(one) === hex(other);

function number(digits, what) {
  require(/^(0|[1-9][0-9]{0,15})$/.test(digits), `${what} is not a whole number`);
  return Number(digits);
}

/** The hash of a leaf, as the log has it. */
export const leafHash = (entry) => sha256([0], text.encode(entry));

/** The nodes from a leaf to the root, each with its sibling and on which side that stands. */
export async function wayToRoot(leaf, index, size, siblings) {
  require(index < size, `a log of size ${size} has no entry ${index}`);
  const way = [];
  let [node, last] = [index, size - 1];
  let hash = leaf;
  for (const sibling of siblings) {
    require(last > 0, "the proof has too many hashes");
    const onLeft = node % 2 === 1 || node === last;
    hash = onLeft ? await sha256([1], sibling, hash) : await sha256([1], hash, sibling);
    way.push({ sibling, onLeft, hash });
    if (onLeft) {
      while (node % 2 === 0 && node !== 0) [node, last] = [node / 2, Math.floor(last / 2)];
    }
    [node, last] = [Math.floor(node / 2), Math.floor(last / 2)];
  }
  require(last === 0, "the proof has too few hashes");
  return { way, root: hash };
}

/** The parts of a signed note: its text, what that says of the log, and its signatures. */
export function noteOf(note) {
  const end = note.lastIndexOf("\n\n");
  require(end > 0 && note.endsWith("\n"), "the checkpoint is no signed note");
  const signed = note.slice(0, end + 1);
  const [origin, size, root] = signed.split("\n");
  require(root !== undefined, "a checkpoint has an origin, a size and a root");
  const signatures = note.slice(end + 2, -1).split("\n").map((line) => {
    const [dash, name, signature] = line.split(" ");
    require(dash === "—" && signature, "a line of signatures is not of the form of C2SP");
    return { name, bytes: decoded(signature, `the signature of ${name}`) };
  });
  return { signed, origin, size: number(size, "the size"), root: decoded(root, "the root"), signatures };
}

/** The parts of a public key in writing: its name, the first bytes of its hash, and itself. */
export async function keyOf(vkey) {
  const [, name, id, base64] = /^([^+\s]+)\+([0-9a-f]{8})\+(\S+)$/.exec(vkey.trim()) ?? [];
  require(name, "the key is not of the form name+id+base64");
  const bytes = decoded(base64, "the key");
  require(bytes[0] === 1 && bytes.length === 33, "the key is not an Ed25519 key of a log");
  const hash = await sha256(text.encode(`${name}\n`), bytes);
  require(hex(hash.slice(0, 4)) === id, "the id of the key is not that of its bytes");
  return { name, id: hash.slice(0, 4), bytes: bytes.slice(1) };
}

/** Require that an event is shown as its entry has it; name the fields of which that is encrypted. */
function differences(entry, shown) {
  const pairs = [
    ...ENVELOPE.map((name) => [name, entry[name], shown[name]]),
    ...Object.entries(shown.data).map(([name, value]) => [name, entry.body?.[name], value]),
    ...Object.entries(shown.metadata ?? {}).map(([name, value]) => [name, entry.metadata?.[name], value]),
  ];
  const encrypted = pairs.filter(([, stored]) => String(stored).startsWith("enc1:"));
  for (const [name, stored, value] of pairs.filter((pair) => !encrypted.includes(pair))) {
    require(JSON.stringify(stored) === JSON.stringify(value), `the entry has another ${name}`);
  }
  return encrypted.map(([name]) => name);
}

async function isSigned(key, note) {
  const own = note.signatures.filter(
    (each) => each.name === key.name && same(each.bytes.slice(0, 4), key.id),
  );
  require(own.length, `the checkpoint has no signature of ${key.name} by this key`);
  const known = await crypto.subtle.importKey("raw", key.bytes, { name: "Ed25519" }, false, ["verify"]);
  return crypto.subtle.verify({ name: "Ed25519" }, known, own[0].bytes.slice(4), text.encode(note.signed));
}

/**
 * Verify a proof step by step: `told(title, detail)` hears of each step that holds.
 * Throws Unproved at the first that does not.
 */
export async function verify(proof, expected, told) {
  const index = number(String(proof.index), "the index");
  let entry = null;
  try {
    entry = JSON.parse(proof.entry);
  } catch {
    throw new Unproved("the entry is not JSON");
  }
  require(entry.offset === index, `the entry is that of offset ${entry.offset}, not of ${index}`);
  require(entry.journal === expected.journal, `the entry is of journal ${entry.journal}`);
  const encrypted = differences(entry, expected.shown);
  const about = `${entry.type} at offset ${index} of journal ${entry.journal}`;
  const but = encrypted.length ? `; only as ciphertext: ${encrypted.join(", ")}` : "";
  told("The entry is this event, as it is shown", about + but);

  const leaf = await leafHash(proof.entry);
  told("Its hash", `SHA-256(0x00 ‖ entry) = ${encoded(leaf)}`);

  const note = noteOf(proof.checkpoint);
  const siblings = proof.hashes.map((each, place) => decoded(each, `hash ${place + 1} of the proof`));
  require(siblings.every((each) => each.length === 32), "a hash of the proof does not have 32 bytes");
  const { way, root } = await wayToRoot(leaf, index, note.size, siblings);
  const steps = way.map(
    ({ sibling, onLeft, hash }) =>
      `SHA-256(0x01 ‖ ${onLeft ? `${encoded(sibling)} ‖ own` : `own ‖ ${encoded(sibling)}`}) = ${encoded(hash)}`,
  );
  told(`The root, from ${steps.length} hashes beside the way`, steps.join("\n"));

  require(same(root, note.root), `the hashes lead to another root than the checkpoint's, ${encoded(note.root)}`);
  told("It is the root of the checkpoint", `${note.origin}, size ${note.size}, root ${encoded(root)}`);

  require(proof.vkey.trim(), "no public key is given: put in the one you got from elsewhere");
  const key = await keyOf(proof.vkey);
  require(key.name === note.origin, `the checkpoint is of ${note.origin}, the key of ${key.name}`);
  require(await isSigned(key, note), `the signature is not that of the key of ${key.name}`);
  told("The checkpoint is signed with the key", `Ed25519, ${key.name}, key id ${hex(key.id)}`);
}

/** The proof of one event, verified at once, and again whenever somebody replaces a part of it. */
class EventProof extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.check();
    });
    this.field("file").addEventListener("change", (event) => this.take(event.target.files[0]));
    this.check();
  }

  field(id) {
    return this.querySelector(`#${id}`);
  }

  get proof() {
    const lines = this.field("hashes").value.split("\n").map((each) => each.trim());
    return {
      index: this.field("index").value.trim(),
      entry: this.field("entry").value,
      hashes: lines.filter(Boolean),
      checkpoint: this.field("checkpoint").value,
      vkey: this.field("vkey").value,
    };
  }

  /** Put a downloaded proof into the form; the key stays, which must not come with the proof. */
  async take(file) {
    if (!file) return;
    try {
      const proof = JSON.parse(await file.text());
      for (const name of ["index", "entry", "checkpoint"]) this.field(name).value = proof[name];
      this.field("hashes").value = proof.hashes.join("\n");
    } catch {
      this.end(false, "Not verified: the file holds no proof");
      return;
    }
    await this.check();
  }

  async check() {
    const steps = this.field("steps");
    steps.replaceChildren();
    if (!globalThis.crypto?.subtle) {
      this.end(false, "Not verified: browsers check signatures only over HTTPS or on this machine");
      return;
    }
    const expected = { journal: this.dataset.journal, shown: JSON.parse(this.dataset.shown) };
    try {
      await verify(this.proof, expected, (...step) => steps.append(this.step(...step)));
      this.end(true, "Verified in this browser: the event is in the signed log");
    } catch (error) {
      const reason = error instanceof Unproved ? error.message : `the check failed: ${error}`;
      this.end(false, `Not verified: ${reason}`);
    }
  }

  step(title, detail) {
    const [item, head, body] = ["li", "b", "code"].map((name) => document.createElement(name));
    head.textContent = title;
    body.textContent = detail;
    item.append(head, body);
    return item;
  }

  end(holds, said) {
    const verdict = this.field("verdict");
    verdict.textContent = said;
    verdict.className = `verdict ${holds ? "holds" : "fails"}`;
  }
}

if (globalThis.customElements) customElements.define("event-proof", EventProof);
