// A PDAE that computes in this page: drawing pad, pictures, bars of z. Everything is loaded by plain scripts, so it works from a
// folder, too, where browsers refuse fetch, modules and workers that are files.
(function () {
  "use strict";
  let SIDE = 32, CHANNELS = 1, BOX = 20, PEN = 2.8;  // MNIST's: digits fill 20 × 20 pixels, strokes are some 2.8 wide, of 32 × 32

  // ---- loading ----------------------------------------------------------------------------------------------------------

  const parts = {};

  async function unpacked(base64) {
    const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }

  function script(src) {
    return new Promise((done, fail) => {
      const tag = Object.assign(document.createElement("script"), { src, onload: done });
      tag.onerror = () => fail(new Error(`${src.split("/").pop()} is missing`));
      document.head.append(tag);
    });
  }

  // The model in its thread. run: pictures one after the other, told to each; call: one answer.
  class Engine {
    async load(base, progress) {
      if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly");
      if (typeof DecompressionStream !== "function") throw new Error("this browser is too old to unpack it");
      const files = ["runtime.js", "model.js"];
      for (const [i, file] of files.entries()) {
        progress(0.05 + 0.35 * i, `loading ${file}`);
        await script(base + file);
      }
      progress(0.7, "unpacking");
      const got = {};
      for (const name of Object.keys(parts)) got[name] = await unpacked(parts[name]);
      const source = ["ort.js", "sampler.js", "worker.js"].map(name => new TextDecoder().decode(got[name]));
      this.model = JSON.parse(new TextDecoder().decode(got["model.json"]));
      this.worker = new Worker(URL.createObjectURL(new Blob([source.join("\n")], { type: "text/javascript" })));
      this.calls = new Map();
      this.id = 0;
      this.each = () => {};
      await new Promise((done, fail) => {
        let count = 0;
        this.worker.onerror = e => fail(new Error(e.message || "the worker did not start"));
        this.worker.onmessage = ({ data }) => {
          if (data.type === "loaded") progress(0.75 + 0.06 * ++count, "preparing the network");
          if (data.type === "ready") done();
          if (data.type === "error") fail(new Error(data.message));
        };
        this.worker.postMessage({ type: "load", parts: got });
      });
      this.worker.onmessage = ({ data }) => {
        if (data.type === "answer" || (data.type === "error" && this.calls.has(data.id))) {
          const [done, fail] = this.calls.get(data.id);
          this.calls.delete(data.id);
          data.type === "answer" ? done(data.answer) : fail(new Error(data.message));
        } else if (data.id === this.id) this.each(data);
      };
      return this;
    }

    run(job, each) {
      this.each = each;
      this.worker.postMessage({ type: "run", id: ++this.id, ...job });
    }

    call(what) {
      const id = `call ${this.calls.size} ${performance.now()}`;
      return new Promise((done, fail) => {
        this.calls.set(id, [done, fail]);
        this.worker.postMessage({ type: "call", id, ...what });
      });
    }
  }

  // ---- drawings ---------------------------------------------------------------------------------------------------------

  function strokesOn(canvas, strokes, width, place) {
    const c = canvas.getContext("2d", { willReadFrequently: true });
    c.fillStyle = "#000";
    c.fillRect(0, 0, canvas.width, canvas.height);
    Object.assign(c, { strokeStyle: "#fff", fillStyle: "#fff", lineWidth: width, lineCap: "round", lineJoin: "round" });
    for (const stroke of strokes) {
      c.beginPath();
      stroke.forEach((p, i) => (i ? c.lineTo(...place(p)) : c.moveTo(...place(p))));
      if (stroke.length === 1) c.lineTo(...place(stroke[0]));
      c.stroke();
    }
    return c;
  }

  // Strokes as MNIST has digits: in a box of 20 × 20, at its centre of mass, with grey edges. Float32Array in [−1, 1].
  function prepared(strokes) {
    const k = 8, points = strokes.flat(), xs = points.map(p => p[0]), ys = points.map(p => p[1]);
    const left = Math.min(...xs), top = Math.min(...ys), width = Math.max(...xs) - left, height = Math.max(...ys) - top;
    const scale = (BOX - PEN) / Math.max(width, height, 0.2), canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE * k;
    function drawn(dx, dy) {
      const place = ([x, y]) => [k * (dx + (x - left - width / 2) * scale), k * (dy + (y - top - height / 2) * scale)];
      const pixels = strokesOn(canvas, strokes, PEN * k, place).getImageData(0, 0, SIDE * k, SIDE * k).data;
      const out = new Float32Array(SIDE * SIDE);
      for (let y = 0; y < SIDE * k; y++) {
        for (let x = 0; x < SIDE * k; x++) out[Math.floor(y / k) * SIDE + Math.floor(x / k)] += pixels[4 * (y * SIDE * k + x)];
      }
      return out.map(v => v / (255 * k * k));
    }
    const first = drawn(SIDE / 2, SIDE / 2), ink = first.reduce((a, b) => a + b, 0);
    const cx = first.reduce((s, v, i) => s + v * (i % SIDE), 0) / ink, cy = first.reduce((s, v, i) => s + v * Math.floor(i / SIDE), 0) / ink;
    return drawn(SIDE - cx, SIDE - cy).map(v => 2 * v - 1);
  }

  // Pixels [C, H, W] in [−1, 1] on a canvas; or differences, of colours their mean, in two colours.
  function show(canvas, pixels, diverging = false) {
    const c = canvas.getContext("2d"), picture = c.createImageData(SIDE, SIDE), n = SIDE * SIDE;
    for (let i = 0; i < n; i++) {
      const rgb = [0, 1, 2].map(k => pixels[i + n * Math.min(k, CHANNELS - 1)]), v = (rgb[0] + rgb[1] + rgb[2]) / 3;
      const grey = rgb.map(v => Math.round(127.5 * (Math.min(Math.max(v, -1), 1) + 1))), m = Math.min(Math.abs(v) / 1.2, 1);
      const ends = v > 0 ? [26, 142, 217] : [235, 110, 50];
      picture.data.set([...(diverging ? ends.map(e => Math.round(245 + (e - 245) * m)) : grey), 255], 4 * i);
    }
    c.putImageData(picture, 0, 0);
  }

  const blank = () => new Float32Array(CHANNELS * SIDE * SIDE).fill(-1);

  // A file of the reader's, its middle square, as [C, H, W] in [−1, 1].
  async function pictureOf(file) {
    const bitmap = await createImageBitmap(file), side = Math.min(bitmap.width, bitmap.height), canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    const c = canvas.getContext("2d");
    c.imageSmoothingQuality = "high";
    c.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
    const rgba = c.getImageData(0, 0, SIDE, SIDE).data, n = SIDE * SIDE;
    return Float32Array.from({ length: CHANNELS * n }, (_, i) => rgba[4 * (i % n) + Math.floor(i / n)] / 127.5 - 1);
  }

  const distance = (a, b) => a.reduce((s, v, i) => s + (v - b[i]) ** 2, 0) / a.length;

  // ---- the page ---------------------------------------------------------------------------------------------------------

  class Page {
    constructor(root) {
      Object.assign(this, { root, strokes: [], picked: null, second: null, z: null, follow: true, moments: [], cursor: [0.5, 0.5], down: false });
      this.$ = s => root.querySelector(s);
      this.data = JSON.parse(root.parentElement.querySelector("script[data-digits]").textContent);
      [SIDE, CHANNELS] = [this.data.side, this.data.channels];
      [BOX, PEN] = [SIDE * 20 / 32, SIDE * 2.8 / 32];
      this.pad = this.$(".live-pad");
      root.classList.toggle("live-colour", CHANNELS > 1);
      this.$(".live-file").hidden = CHANNELS === 1;
      this.$(".live-file input").addEventListener("change", e => this.take(e.target.files[0]));
      this.digits = this.data.images.map(b64 => Float32Array.from(atob(b64), c => c.charCodeAt(0) / 127.5 - 1));
      this.tile = name => this.$(`[data-tile="${name}"] canvas`);
      this.value = name => +this.$(`[data-control="${name}"]`).value;
      root.querySelectorAll("[data-do]").forEach(b => b.addEventListener("click", () => this[b.dataset.do]()));
      root.querySelectorAll("[data-control]").forEach(input => input.addEventListener("input", () => this.moved(input)));
      root.querySelectorAll("fieldset input").forEach(input => input.addEventListener("change", () => this.restart()));
      this.buildPicks();
      this.buildBars();
      this.buildAttributes();
      root.querySelectorAll("label > output + input").forEach(i => i.setAttribute("aria-label", i.parentElement.firstChild.textContent.trim()));  // else output takes the label
      this.buildPad();
      root.querySelectorAll("[data-tile] canvas").forEach(c => show(c, blank()));
      this.choose(Math.min(3, this.digits.length - 1));
      root.classList.add("ready");
    }

    buildPicks() {
      for (const group of this.root.querySelectorAll(".live-picks")) {
        const second = "second" in group.dataset;
        this.digits.forEach((pixels, i) => {
          const button = document.createElement("button"), canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
          button.type = "button";
          button.setAttribute("aria-label", `${second ? "mix with" : "take"} ${this.data.labels[i]}`);
          button.setAttribute("aria-pressed", "false");
          show(canvas, pixels);
          button.append(canvas);
          button.addEventListener("click", () => (second ? this.mixWith(i) : this.choose(i)));
          group.append(button);
        });
      }
    }

    press(group, which) {
      this.root.querySelectorAll(`.live-picks${group} button`).forEach((b, i) => b.setAttribute("aria-pressed", String(i === which)));
    }

    buildBars() {
      const box = this.$(".live-bars");
      if (this.data.z_mean.length > 64) {  // folded
        const all = document.createElement("details");
        all.innerHTML = `<summary>all ${this.data.z_mean.length} numbers</summary>`;
        box.replaceWith(all);
        all.append(box);
      }
      this.bars = this.data.z_mean.map((_, i) => {
        const bar = document.createElement("label");
        bar.innerHTML = `<i></i><input type="range" min="-4" max="4" step="0.1" value="0" autocomplete="off" aria-label="z ${i + 1}">`;
        box.append(bar);
        bar.lastChild.addEventListener("input", () => this.barMoved(i));
        return bar;
      });
    }

    showBars() {
      this.bars.forEach((bar, i) => {
        const own = (this.own[i] - this.data.z_mean[i]) / this.data.z_std[i], now = (this.used[i] - this.data.z_mean[i]) / this.data.z_std[i];
        const input = bar.lastChild, height = v => Math.min(Math.max(v, -4), 4);
        if (document.activeElement !== input || !this.z) input.value = height(now);
        input.setAttribute("aria-valuetext", `${now.toFixed(1)} standard deviations`);
        bar.firstChild.style.cssText = `--v:${height(now) / 4};--own:${height(own) / 4}`;
        bar.classList.toggle("changed", Math.abs(own - now) > 0.05);
      });
    }

    barMoved(i) {
      if (!this.used) return;
      this.z = this.z || Float32Array.from(this.used);
      this.z[i] = this.data.z_mean[i] + this.bars[i].lastChild.value * this.data.z_std[i];
      this.used = this.z;
      this.showBars();
      this.restart();
    }

    // Sliders that move z along directions, in lengths of a normalised code, on top of what the bars say.
    buildAttributes() {
      const box = this.$(".live-attributes div");
      this.knobs = Object.entries(this.data.attributes).map(([name, step]) => {
        const label = document.createElement("label"), input = Object.assign(document.createElement("input"), { type: "range", min: -0.5, max: 0.5, step: 0.05, value: 0, autocomplete: "off" });
        label.append(`${name.replaceAll("_", " ")} `, Object.assign(document.createElement("output"), { textContent: "0" }), input);
        box.append(label);
        let last = 0;
        const set = (value, moves) => {
          if (moves) this.z = Float32Array.from(this.z || this.used, (v, i) => v + (value - last) * step[i]);
          last = value;
          input.value = value;
          label.querySelector("output").textContent = `${value > 0 ? "+" : ""}${value}`;
        };
        input.addEventListener("input", () => {
          if (!this.used) return;
          set(+input.value, true);
          this.used = this.z;
          this.showBars();
          this.restart();
        });
        return set;
      });
    }

    ownZ() { this.z = null; this.knobs.forEach(set => set(0, false)); }

    reset() { this.ownZ(); this.restart(); }

    async take(file) {
      if (!file) return;
      try { this.file = await pictureOf(file); } catch (error) { return this.say(`${file.name} is no picture that this browser reads.`); }
      Object.assign(this, { picked: null, strokes: [] });
      this.press(":not([data-second])", null);
      this.changed();
    }

    // Pointers and keys on the pad; points are in 0 … 1.
    buildPad() {
      const at = e => { const r = this.pad.getBoundingClientRect(); return [(e.clientX - r.left) / r.width, (e.clientY - r.top) / r.height]; };
      this.pad.addEventListener("pointerdown", e => {
        e.preventDefault();
        this.pad.focus({ preventScroll: true });
        try { this.pad.setPointerCapture(e.pointerId); } catch (ignored) { /* a pointer that has gone */ }
        this.drawing = e.pointerId;
        this.down = false;
        this.begin(at(e));
      });
      this.pad.addEventListener("pointermove", e => {
        if (this.drawing !== e.pointerId) return;
        for (const event of e.getCoalescedEvents && e.getCoalescedEvents().length ? e.getCoalescedEvents() : [e]) this.strokes.at(-1).push(at(event));
        this.redraw();
      });
      for (const kind of ["pointerup", "pointercancel"]) this.pad.addEventListener(kind, e => {
        if (this.drawing !== e.pointerId) return;
        this.drawing = null;
        this.changed();
      });
      this.pad.addEventListener("keydown", e => {
        const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
        if (!way && ![" ", "Backspace", "Delete"].includes(e.key)) return;
        e.preventDefault();
        this.keyed = true;
        if (way) {
          this.cursor = this.cursor.map((v, i) => Math.min(Math.max(v + way[i] * 0.04, 0.05), 0.95));
          if (this.down) this.strokes.at(-1).push([...this.cursor]);
        } else if (e.key === " ") {
          this.down = !this.down;
          if (this.down) this.begin([...this.cursor]); else this.changed();
          this.say(`pen ${this.down ? "down" : "up"}`);
        } else if (e.key === "Backspace") this.undo(); else this.clear();
        this.redraw();
      });
      this.pad.addEventListener("blur", () => { this.keyed = false; if (this.down) { this.down = false; this.changed(); } this.redraw(); });
    }

    begin(point) {
      if (this.picked !== null) { this.picked = null; this.strokes = []; this.press(":not([data-second])", null); }
      this.strokes.push([point]);
      this.redraw();
    }

    undo() { this.down = false; this.strokes.pop(); this.changed(); }

    clear() { Object.assign(this, { strokes: [], picked: null, down: false }); this.press(":not([data-second])", null); this.changed(); }

    redraw() {
      const size = this.pad.width, c = strokesOn(this.pad, this.strokes, size * 0.075, ([x, y]) => [x * size, y * size]);
      if (this.picked !== null) {
        c.imageSmoothingEnabled = false;
        c.drawImage(this.tile("drawing"), 0, 0, size, size);
      } else if (!this.strokes.length) {
        Object.assign(c, { fillStyle: "#9a9a9a", font: `${size / 18}px system-ui, sans-serif`, textAlign: "center" });
        c.fillText("draw here", size / 2, size / 2);
      }
      if (this.keyed) {
        c.strokeStyle = this.down ? "#4fb3ff" : "#ffd24f";
        c.lineWidth = 4;
        c.beginPath();
        c.arc(this.cursor[0] * size, this.cursor[1] * size, size * 0.03, 0, 7);
        c.stroke();
      }
    }

    choose(i) {
      Object.assign(this, { picked: i, strokes: [], down: false, file: null });
      this.press(":not([data-second])", i);
      this.changed();
    }

    mixWith(i) {
      this.second = this.second === i ? null : i;
      this.press("[data-second]", this.second);
      this.ownZ();
      this.restart();
    }

    // The drawing is another one.
    changed() {
      this.x_0 = this.picked !== null ? this.digits[this.picked] : this.strokes.length ? prepared(this.strokes) : this.file || null;
      show(this.tile("drawing"), this.x_0 || blank());
      this.ownZ();
      this.redraw();
      this.restart();
    }

    moved(input) {
      const name = input.dataset.control, output = input.parentElement.querySelector("output");
      if (name === "moment") {
        this.follow = false;
        return this.showGap(+input.value);
      }
      output.textContent = name === "scale" ? (+input.value).toFixed(1) : name === "mix" ? (+input.value).toFixed(2) : input.value;
      if (name === "mix") this.ownZ();
      if (name !== "mix" || this.second !== null) this.restart();
    }

    // ---- runs ------------------------------------------------------------------------------------------------------------

    say(text) { this.$(".live-status").textContent = text; }

    progress(share, text) {
      this.$(".live-progress").hidden = false;
      this.$("progress").value = share;
      this.$(".live-now").textContent = text;
    }

    async start() {
      if (this.loading) return;
      this.loading = true;
      this.$("[data-do=start]").hidden = true;
      try {
        this.engine = await new Engine().load(this.root.dataset.base, (share, text) => this.progress(share, text));
      } catch (error) {
        this.$(".live-progress").hidden = true;
        this.say(`The model can't run here: ${error.message}. The pictures below were computed before.`);
        this.root.dataset.state = "failed";
        return;
      }
      this.root.querySelectorAll("[hidden]:not([data-do])").forEach(e => { e.hidden = false; });
      this.$(".live-attributes").hidden = !this.knobs.length;
      this.$(".live-file").hidden = CHANNELS === 1;
      this.$(".live-fallback").hidden = true;
      this.root.dataset.state = "ready";
      this.restart();
    }

    // Whatever ran is stopped, and begun anew with the controls as they stand.
    restart() {
      if (!this.engine || this.root.dataset.state === "failed") return;
      if (!this.x_0) {
        this.engine.id++;
        this.engine.worker.postMessage({ type: "stop" });
        this.root.dataset.state = "ready";
        return this.say("Draw something, or take a digit.");
      }
      const second = this.second === null ? null : this.digits[this.second], mixed = this.$("fieldset input:checked").value, share = this.value("mix");
      this.root.dataset.state = "running";
      this.say("");
      this.seen = 0;
      this.fresh = true;
      const steps = this.value("steps");
      this.total = 4 * steps + (second && mixed !== "z" ? steps : 0);
      this.engine.run({ x_0: this.x_0, x_0b: second, z: this.z, noise: self.pdaeSampler.gaussian(CHANNELS * SIDE * SIDE, this.value("seed")),
        scale: this.value("scale"), steps, mixZ: mixed === "x" ? 0 : share, mixX: mixed === "z" ? 0 : share }, message => this.told(message));
    }

    told(message) {
      const names = { z: "decoding from z", dpm: "the DPM alone", invert: "inferring x_T", inferred: "decoding from x_T" };
      if (message.type === "error") {
        this.root.dataset.state = "failed";
        this.say(`It stopped: ${message.message}`);
      } else if (message.type === "z") {
        Object.assign(this, { own: message.own, used: message.used });
        this.showBars();
      } else if (message.type === "step") {
        this.progress(++this.seen / this.total, `${names[message.tile]}, step ${message.i + 1} of ${message.n}`);
        if (message.tile === "z") {
          if (this.fresh) { this.moments = []; this.fresh = false; }
          this.moments.push(message);
          const knob = this.$("[data-control=moment]");
          knob.max = message.n - 1;
          if (this.follow) knob.value = this.moments.length - 1;
          this.showGap(Math.min(+knob.value, this.moments.length - 1));
        }
        if (message.tile !== "invert") this.picture(message.tile, message.x_0, `t = ${message.t}`);
      } else if (message.type === "end") {
        this.picture(message.tile, message.x, `distance ${distance(message.x, this.x_0).toFixed(3)}`);
        this.root.querySelector(`[data-tile=${message.tile}]`).dataset.distance = distance(message.x, this.x_0);
        if (message.tile === "z" && this.follow) {  // the middle says most
          const middle = Math.floor(this.moments.length / 3);
          this.$("[data-control=moment]").value = middle;
          this.showGap(middle);
        }
        if (message.tile === "z") this.seconds = message.seconds;
      } else if (message.type === "done") {
        this.progress(1, "");
        this.$(".live-progress").hidden = true;
        this.root.dataset.state = "done";
        this.say(`Done: decoded from z in ${this.seconds.toFixed(1)} s, all pictures in ${message.seconds.toFixed(1)} s. Move anything.`);
      }
    }

    picture(tile, pixels, note) {
      show(this.tile(tile), pixels);
      this.root.querySelector(`[data-tile=${tile}] [data-note]`).textContent = note;
    }

    showGap(i) {
      const m = this.moments[i];
      if (!m) return;
      const output = this.$("[data-control=moment]").parentElement.querySelector("output");
      output.textContent = `t = ${m.t}`;
      this.$("[data-control=moment]").setAttribute("aria-valuetext", `t = ${m.t}`);
      show(this.tile("x_t"), m.x_t);
      show(this.tile("plain"), m.plain);
      show(this.tile("full"), m.full);
      show(this.tile("gap"), m.full.map((v, k) => v - m.plain[k]), true);
    }
  }

  const live = self.pdaeLive = { part(name, base64) { parts[name] = base64; }, pages: [], prepared, Engine };
  function begin() { document.querySelectorAll(".pdae-live").forEach(root => live.pages.push(new Page(root))); }
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", begin) : begin();
})();
