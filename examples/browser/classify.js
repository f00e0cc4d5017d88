// Classifies a photograph by all tasks of an exported hub, in the browser: nothing is sent anywhere.
import * as ort from "./ort.wasm.bundle.min.mjs";

const MODEL = "my-hub.onnx";
const TOP_CLASSES = 5;

const element = (id) => document.getElementById(id);

/** [number, content] of the fields of a protobuf message that have a length; ONNX's others on this level are numbers. */
function* fields(bytes) {
  let at = 0;
  const number = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte % 128) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = number();
    const value = number();
    if (tag % 8 !== 2) continue;
    yield [tag >> 3, bytes.subarray(at, at + value)];
    at += value;
  }
}

/** What torchsnow wrote into an ONNX file's `metadata_props`, which ONNX Runtime Web does not hand out. */
function description(file) {
  const text = new TextDecoder();
  for (const [number, content] of fields(file)) {
    if (number !== 14) continue;
    const [[, key], [, value]] = fields(content);
    if (text.decode(key) === "torchsnow") return JSON.parse(text.decode(value));
  }
  throw new Error("it was not written by torchsnow export");
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// Pillow's filters: how far they reach, and their values up to there.
const FILTERS = {
  box: [0.5, () => 1],
  bilinear: [1, (x) => 1 - x],
  hamming: [1, (x) => sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x))],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2)],
  lanczos: [3, (x) => sinc(x) * sinc(x / 3)],
};

/** For one of the pixels that `from` ones become: the first of those that it is made of, and their weights. */
function weights(place, from, to, interpolation) {
  const scale = from / to;
  const center = (place + 0.5) * scale;
  if (interpolation === "nearest") return [Math.floor(center), [1]];
  const [reach, filter] = FILTERS[interpolation];
  const stretch = Math.max(scale, 1);
  const first = Math.max(0, Math.floor(center - reach * stretch + 0.5));
  const end = Math.min(from, Math.floor(center + reach * stretch + 0.5));
  const given = Array.from({ length: end - first }, (_, i) => filter(Math.abs(first + i - center + 0.5) / stretch));
  const sum = given.reduce((a, b) => a + b);
  return [first, given.map((weight) => weight / sum)];
}

/** RGBA rows of `from` pixels, resized to `to` pixels as Pillow does it, and turned: rows become columns. */
function resizedRows(pixels, from, to, interpolation) {
  const rows = pixels.length / 4 / from;
  const result = new Uint8ClampedArray(rows * to * 4);
  for (let place = 0; place < to; place++) {
    const [first, shares] = weights(place, from, to, interpolation);
    const fixed = shares.map((share) => Math.round(share * 2 ** 22)); // so that halves are rounded as Pillow rounds them
    for (let row = 0; row < rows; row++) {
      for (let channel = 0; channel < 4; channel++) {
        let sum = 2 ** 21;
        for (let i = 0, at = (row * from + first) * 4 + channel; i < fixed.length; i++, at += 4) sum += fixed[i] * pixels[at];
        result[(place * rows + row) * 4 + channel] = Math.floor(sum / 2 ** 22);
      }
    }
  }
  return result;
}

/** Width and height to which a picture is resized. */
function resizedSize(width, height, { crop, resize_size: side }) {
  if (crop === "squash") return [side, side];
  const longer = Math.max(width, height), shorter = Math.min(width, height);
  if (crop === "center") return [width, height].map((length) => Math.floor((side * length) / shorter));
  return [width, height].map((length) => Math.max(1, Math.floor((side * length) / longer)));
}

/** Half of a difference, as Python rounds it: to even. */
function half(difference) {
  const below = Math.floor(difference / 2);
  return difference % 2 && below % 2 ? below + 1 : below;
}

/** Upright RGBA pixels as the input, (1, 3, S, S), by the file's `preprocessing`. */
function prepare({ data, width, height }, how) {
  const { image_size: size, resize_size: side, crop, interpolation, mean, std } = how;
  const [newWidth, newHeight] = resizedSize(width, height, how);
  const columns = resizedRows(data, width, newWidth, interpolation);
  const pixels = resizedRows(columns, height, newHeight, interpolation);
  const [left, top] = [newWidth, newHeight].map((length) =>
    crop === "border" ? half(side - size) - Math.floor((side - length) / 2) : half(length - size),
  );
  const input = new Float32Array(3 * size * size);
  for (let at = 0; at < input.length; at++) {
    const [channel, y, x] = [Math.floor(at / size / size), (Math.floor(at / size) % size) + top, (at % size) + left];
    const isInside = x >= 0 && x < newWidth && y >= 0 && y < newHeight;
    const value = isInside ? pixels[(y * newWidth + x) * 4 + channel] : Math.round(255 * mean[channel]);
    input[at] = (value / 255 - mean[channel]) / std[channel];
  }
  return new ort.Tensor("float32", input, [1, 3, size, size]);
}

/** The pixels of an image file, upright, in its own colours, and on white where it is transparent. */
async function decoded(file) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, image.width, image.height);
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}

/** The probability of every class, and which classes the task names. */
function judged(logits, thresholds) {
  const largest = Math.max(...logits);
  const odds = logits.map((logit) => Math.exp(logit - largest));
  const sum = odds.reduce((a, b) => a + b);
  if (thresholds === null) return odds.map((odd, i) => ({ probability: odd / sum, said: logits[i] === largest }));
  return logits.map((logit, i) => {
    const probability = 1 / (1 + Math.exp(-logit));
    return { probability, said: probability >= thresholds[i] };
  });
}

function created(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** One task's most likely classes, and whether the image is unlike its own. */
function card(task, outputs) {
  const all = judged(Array.from(outputs[task.output].data), task.thresholds);
  const best = all
    .map((one, i) => ({ ...one, label: task.classes[i] }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, TOP_CLASSES)
    .map(({ label, probability, said }) =>
      created("li", { className: said ? "said" : "" }, created("span", { textContent: label }),
        created("meter", { value: probability }),
        created("data", { value: probability, textContent: `${(100 * probability).toFixed(1)}%` })),
    );
  const made = created("article", {}, created("h2", { textContent: task.name }), created("ol", {}, ...best));
  if (task.unknown_output !== null) {
    const score = outputs[task.unknown_output].data[0];
    const words = score > 1 ? " unlike this task's own images: its classes mean little" : "";
    const number = created("data", { value: score, textContent: score.toFixed(2) });
    made.append(created("p", { className: score > 1 ? "unknown bad" : "unknown" }, "unknown score ", number, words));
  }
  return made;
}

function say(words, isBad = false) {
  element("status").textContent = words;
  element("status").className = isBad ? "bad" : "";
}

async function load() {
  const reply = await fetch(MODEL);
  if (!reply.ok) throw new Error("it is not next to this page; torchsnow export writes it");
  const file = new Uint8Array(await reply.arrayBuffer());
  const about = description(file);
  return { about, session: await ort.InferenceSession.create(file) };
}

async function classify({ about, session }, file) {
  element("tasks").replaceChildren();
  element("photo").hidden = true;
  say(`Looking at ${file.name}`);
  const picture = await decoded(file).catch(() => {
    throw new Error("this browser cannot read it as a picture");
  });
  URL.revokeObjectURL(element("photo").src);
  Object.assign(element("photo"), { src: URL.createObjectURL(file), hidden: false });
  const start = performance.now();
  const outputs = await session.run({ [about.input]: prepare(picture, about.preprocessing) });
  element("tasks").replaceChildren(...about.tasks.map((task) => card(task, outputs)));
  say(`${about.tasks.length} tasks answered in ${Math.round(performance.now() - start)} ms`);
}

try {
  const hub = await load();
  element("file").onchange = async ({ target }) => {
    const [file] = target.files;
    if (!file) return;
    target.disabled = true;
    await classify(hub, file).catch((error) => say(`${file.name}: ${error.message}`, true));
    target.disabled = false;
  };
  element("file").disabled = false;
  say("Choose a photograph");
} catch (error) {
  say(`${MODEL}: ${error.message}`, true);
}
