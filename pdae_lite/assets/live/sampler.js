// Samplers as in pdae_lite/sampling.py: the same grids, coefficients and names. Images are Float32Arrays; a denoiser is an async
// function (x, t) -> {eps, …}; t = −1 is the clean image. Each sampler is an async generator that yields after every step, so that
// whoever drives it may show x̂_0, or stop.
(function (root) {
  "use strict";

  function rounded(v) {  // half to even, as Python rounds
    const r = Math.round(v);
    return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r;
  }

  // End points of the steps, increasing, from −1; see time_grid in sampling.py.
  function timeGrid(T, steps, grid = "uniform") {
    const power = { quadratic: 2, cubic: 3 }[grid], points = [], step = T / steps;
    for (let i = 0; i <= steps; i++) {
      points.push(power ? Math.max(rounded(T * (i / steps) ** power), i) - 1
        : rounded(i < Math.floor((steps + 1) / 2) ? -1 + step * i : T - 1 - step * (steps - i)));
    }
    return [...new Set(points)];
  }

  // Tables of model.json to (√ᾱ_t, √(1−ᾱ_t)).
  function schedule(model) {
    return {
      T: model.sqrt_alpha_bar.length,
      range: model.data_range,
      level: t => (t < 0 ? [1, 0] : [model.sqrt_alpha_bar[t], model.sqrt_one_minus_alpha_bar[t]]),
    };
  }

  const map = (f, ...xs) => xs[0].map((_, i) => f(...xs.map(x => x[i])));

  function clamped(x, range) {
    return range ? x.map(v => Math.min(Math.max(v, range[0]), range[1])) : x;
  }

  // x̂_0 = (x − √(1−ᾱ) ε)/√ᾱ, clamped to a range if there is one.
  function predicted(x, eps, t, s, range) {
    const [a, b] = s.level(t);
    return clamped(map((v, e) => (v - b * e) / a, x, eps), range);
  }

  // One step of DDIM, up or down in t: √ᾱ_next x̂_0 + √(1−ᾱ_next) ε, with ε derived anew from a clamped x̂_0.
  function ddimStep(x, eps, t, next, s, range) {
    const [a, b] = s.level(t), [aNext, bNext] = s.level(next), x_0 = predicted(x, eps, t, s, range);
    const e = range && b > 0 ? map((v, w) => (v - a * w) / b, x, x_0) : eps;
    return map((v, w) => aNext * v + bNext * w, x_0, e);
  }

  async function* ddim(denoiser, x, s, { steps = 100, grid = "uniform", clip = true } = {}) {
    const points = timeGrid(s.T, steps, grid).reverse(), range = clip ? s.range : null;
    for (let i = 0; i + 1 < points.length; i++) {
      const t = points[i], told = await denoiser(x, t), x_t = x;
      x = ddimStep(x, told.eps, t, points[i + 1], s, range);
      yield { i, n: points.length - 1, t, next: points[i + 1], x_t, x_0: predicted(x_t, told.eps, t, s, range), x, told };
    }
  }

  // DPM-Solver++(2M): x_next = σ_next/σ x − √ᾱ_next (e^{−h} − 1) D, D = x̂_0 + (h/2h')(x̂_0 − x̂_0'); first and last step are DDIM's.
  async function* dpmSolver(denoiser, x, s, { steps = 20, grid = "uniform", clip = true } = {}) {
    const points = timeGrid(s.T, steps, grid).reverse(), range = clip ? s.range : null;
    let before = null;
    for (let i = 0; i + 1 < points.length; i++) {
      const t = points[i], [a, b] = s.level(t), [aNext, bNext] = s.level(points[i + 1]), x_t = x;
      const told = await denoiser(x, t), x_0 = predicted(x, told.eps, t, s, range), lambda = Math.log(a / b);
      let estimate = x_0;
      if (before && bNext > 0) {
        const ratio = 0.5 * (Math.log(aNext / bNext) - lambda) / (lambda - before.lambda);
        estimate = map((v, w) => v + ratio * (v - w), x_0, before.x_0);
      }
      const keep = bNext / b, take = aNext * (1 - bNext / b * (a / aNext));
      x = map((v, w) => keep * v + take * w, x_t, estimate);
      before = { lambda, x_0 };
      yield { i, n: points.length - 1, t, next: points[i + 1], x_t, x_0, x, told };
    }
  }

  // DDIM run backwards, from the clean image to x_T; order 2 (Adams–Bashforth) carries the last ε forward.
  async function* invert(denoiser, x, s, { steps = 100, grid = "uniform", order = 1 } = {}) {
    const points = timeGrid(s.T, steps, grid);
    let before = null;
    for (let i = 0; i + 1 < points.length; i++) {
      const t = points[i], told = await denoiser(x, Math.max(t, 0)), x_t = x;
      const [a, b] = s.level(t), [aNext, bNext] = s.level(points[i + 1]), h = bNext / aNext - b / a;
      let eps = told.eps;
      if (order === 2 && before) {
        const ratio = 0.5 * h / before.h;
        eps = map((v, w) => v + ratio * (v - w), eps, before.eps);
      }
      before = { eps: told.eps, h };
      x = ddimStep(x, eps, t, points[i + 1], s, null);
      yield { i, n: points.length - 1, t, next: points[i + 1], x_t, x_0: predicted(x_t, told.eps, Math.max(t, 0), s, s.range), x, told };
    }
  }

  // ε̂ = ε_θ + s (ε_z − ε_θ) in the difference form, ε_θ − s · shift in the paper's, at scale s.
  function shifted(form, eps, known, scale) {
    if (form === "paper") return map((e, k) => e - scale * k, eps, known);
    return scale === 1 ? known : map((e, k) => e + scale * (k - e), eps, known);
  }

  function lerp(a, b, w) { return map((v, u) => v + w * (u - v), a, b); }

  // Along the great circle between two noises; their lengths linearly.
  function slerp(a, b, w) {
    const norm = x => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0)), na = norm(a), nb = norm(b);
    const cosine = a.reduce((sum, v, i) => sum + v * b[i], 0) / Math.max(na * nb, 1e-12);
    const angle = Math.acos(Math.min(Math.max(cosine, -1), 1)), sine = Math.sin(angle);
    if (!(sine > 1e-4)) return lerp(a, b, w);
    const length = (1 - w) * na + w * nb, p = Math.sin((1 - w) * angle) / sine / na, q = Math.sin(w * angle) / sine / nb;
    return map((v, u) => length * (p * v + q * u), a, b);
  }

  // Gaussian noise of a seed (mulberry32 and Box–Muller): not PyTorch's numbers.
  function gaussian(n, seed) {
    let state = (seed * 2654435761 + 1) >>> 0;
    function uniform() {
      state = (state + 0x6d2b79f5) >>> 0;
      let v = Math.imul(state ^ (state >>> 15), 1 | state);
      v = (v + Math.imul(v ^ (v >>> 7), 61 | v)) ^ v;
      return (((v ^ (v >>> 14)) >>> 0) + 0.5) / 4294967296;
    }
    const x = new Float32Array(n);
    for (let i = 0; i < n; i += 2) {
      const r = Math.sqrt(-2 * Math.log(uniform())), angle = 2 * Math.PI * uniform();
      x[i] = r * Math.cos(angle);
      if (i + 1 < n) x[i + 1] = r * Math.sin(angle);
    }
    return x;
  }

  root.pdaeSampler = { timeGrid, schedule, predicted, ddim, dpmSolver, invert, shifted, lerp, slerp, gaussian };
})(self);
