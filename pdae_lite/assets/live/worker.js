// Runs the four graphs by onnxruntime-web, in a thread of its own. Messages in: load, run, call. A new run ends the one before it.
(function () {
  "use strict";
  const S = self.pdaeSampler, sessions = {}, inferred = new Map();
  let model, schedule, current = 0, alone = {};

  async function load(parts) {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = parts["ort.wasm"];
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([parts["ort.mjs"]], { type: "text/javascript" })) };
    model = JSON.parse(new TextDecoder().decode(parts["model.json"]));
    schedule = S.schedule(model);
    for (const name of ["encoder", "trunk", "head", "known"]) {
      sessions[name] = await ort.InferenceSession.create(new Uint8Array(parts[name]), {
        executionProviders: ["wasm"], graphOptimizationLevel: "all", freeDimensionOverrides: { n: 1 }, logSeverityLevel: 3 });
      postMessage({ type: "loaded", name });
    }
  }

  function image(x) { return new ort.Tensor("float32", x, [1, model.channels, ...model.size]); }

  async function ask(name, told) {
    const feeds = {};
    for (const key of sessions[name].inputNames) feeds[key] = told[key];
    return sessions[name].run(feeds);
  }

  async function encode(x_0) { return (await ask("encoder", { x_0: image(x_0) })).z.data; }

  // A denoiser (x, t) -> {eps, plain?, known?}. scale: a number, or {value, from, to}, which is 0 outside from ≤ t < to. both: also
  // what the DPM says alone, `plain`, where it would not be asked.
  function denoiser(z, scale = 1, both = false) {
    return async (x, t) => {
      const s = typeof scale === "number" ? scale : t >= scale.from && t < scale.to ? scale.value : 0;
      const told = { x_t: image(x), t: new ort.Tensor("int64", BigInt64Array.of(BigInt(t)), [1]) };
      Object.assign(told, await ask("trunk", told));
      const plain = both || s === 0 || model.form === "paper" || s !== 1 ? (await ask("head", told)).eps.data : null;
      if (s === 0 && !both) return { eps: plain, plain };
      told.z = new ort.Tensor("float32", z, [1, model.z_dim]);
      const known = (await ask("known", told)).known.data;
      return { eps: s === 0 ? plain : S.shifted(model.form, plain, known, s), plain, full: S.shifted(model.form, plain, known, 1) };
    };
  }

  // Drives a sampler as long as run `id` is the current one; null if another has begun.
  async function drive(id, sampler, each) {
    let last = null;
    for await (const step of sampler) {
      await new Promise(done => setTimeout(done));  // messages come in here
      if (id !== current) return null;
      each(last = step);
    }
    return last.x;
  }

  // The noise that DDIM maps an image to, kept for as long as the image stays.
  async function noiseOf(id, x_0, z, steps, each) {
    const key = `${steps}:${x_0.join()}`;
    if (!inferred.has(key)) {
      const x_T = await drive(id, S.invert(denoiser(z), x_0, schedule, { steps, grid: "quadratic" }), each);
      if (!x_T) return null;
      if (inferred.size > 40) inferred.clear();
      inferred.set(key, x_T);
    }
    return inferred.get(key);
  }

  // All pictures of the page, one after the other: rebuilt from z, the DPM alone, rebuilt from z and inferred x_T.
  async function run({ id, x_0, x_0b, z, noise, scale, steps, mixZ = 0, mixX = 0 }) {
    const start = performance.now(), own = await encode(x_0), other = x_0b ? await encode(x_0b) : null;
    const used = z || (other ? S.lerp(own, other, mixZ) : own), options = { steps, grid: "quadratic" };
    const tell = tile => step => postMessage({ type: "step", id, tile, i: step.i, n: step.n, t: step.t, x_0: step.x_0, x_t: step.x_t,
      plain: step.told.plain && S.predicted(step.x_t, step.told.plain, step.t, schedule, schedule.range),
      full: step.told.full && S.predicted(step.x_t, step.told.full, step.t, schedule, schedule.range) });
    postMessage({ type: "z", id, own, other, used });
    let x = await drive(id, S.dpmSolver(denoiser(used, scale, true), noise, schedule, options), tell("z"));
    if (!x) return;
    postMessage({ type: "end", id, tile: "z", x, seconds: (performance.now() - start) / 1000 });
    const same = `${steps}:${noise.join()}`;  // what the DPM alone makes doesn't change with the drawing
    if (alone.same !== same) {
      if (!(x = await drive(id, S.dpmSolver(denoiser(used, 0), noise, schedule, options), tell("dpm")))) return;
      alone = { same, x };
    }
    postMessage({ type: "end", id, tile: "dpm", x: alone.x });
    let x_T = await noiseOf(id, x_0, own, steps, tell("invert"));
    if (x_T && other && mixX) {
      const second = await noiseOf(id, x_0b, other, steps, tell("invert"));
      x_T = second && S.slerp(x_T, second, mixX);
    }
    if (!x_T || !(x = await drive(id, S.ddim(denoiser(used, scale), x_T, schedule, options), tell("inferred")))) return;
    postMessage({ type: "end", id, tile: "inferred", x });
    postMessage({ type: "done", id, seconds: (performance.now() - start) / 1000 });
  }

  // One thing by itself, for other pieces of the book and for tests: {what: "encode" | "denoise" | a sampler}.
  async function call({ what, x, z, t, scale, options }) {
    if (what === "encode") return encode(x);
    if (what === "denoise") {
      const told = await denoiser(z, scale, true)(x, t);
      const x_0 = eps => S.predicted(x, eps, t, schedule, schedule.range);
      return { x_0: x_0(told.eps), plain: x_0(told.plain), full: x_0(told.full) };
    }
    let last;
    for await (last of S[what](denoiser(z, scale), x, schedule, options));
    return last.x;
  }

  onmessage = async ({ data }) => {
    try {
      if (data.type === "load") {
        await load(data.parts);
        postMessage({ type: "ready" });
      } else if (data.type === "call") {
        postMessage({ type: "answer", id: data.id, answer: await call(data) });
      } else if (data.type === "stop") {
        current = 0;
      } else {
        current = data.id;
        await run(data);
      }
    } catch (error) {
      postMessage({ type: "error", id: data.id, message: String(error && error.message || error) });
    }
  };
})();
