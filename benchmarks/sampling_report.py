"""What benchmarks/sampling.py measured, as text."""


def _value(e: dict, digits: str = ".3g") -> str:
    return f"{e['value']:{digits}} [{e['low']:{digits}}, {e['high']:{digits}}]"


def table(result: dict) -> str:
    """The result as text."""
    facts, images = result["provenance"], result["counts"]["images"]
    lines = [f"{result['data']}: {images} images, on {facts['device']}, {facts['threads']} thread(s), torch {facts['torch']}"]
    one = sum(result["gflop"].values())
    lines.append(f"GFLOP for an image: {one - result['gflop']['shift']:.3g} for a plain evaluation, {one:.3g} for a shifted one "
                 f"({one / (one - result['gflop']['shift']):.2f}×)")
    heads = {"random_x_T": f"{'MSE to the 1000-step solution':>32}{'features':>10}{'MSE to x_0':>12}{'SSIM':>7}",
             "inferred_x_T": f"{'MSE':>32}{'SSIM':>7}{'neighbours':>12}{'brightness':>12}{'follows z':>11}",
             "drawn": f"{'KID':>32}",
             "intervals": f"{'MSE to x_0':>32}{'own':>7}{'KID':>32}{'follows z':>11}",
             "shift": f"{'MSE':>32}{'SSIM':>7}{'neighbours':>12}{'brightness':>12}"}
    for section, head in heads.items():
        if section not in result:
            continue
        lines += ["", f"{section:46}{'evaluations':>12}{'GFLOP':>8}{'s/image':>9}{head}"]
        for r in result[section]["rows"]:
            cost = f"{r['evaluations']:12.0f}{r['gflop']:8.2f}{r['seconds']:9.3f}" if "seconds" in r else " " * 29
            noise = r.get("noise", {})
            line = f"{r.get('form', '') + ' ' if 'form' in r else ''}{r['name']}"
            if section == "random_x_T":
                tail = f"{_value(r['mse']) if 'mse' in r else '–':>32}{r['features']['value'] if 'mse' in r else 0:10.3g}"
                tail += f"{r['mse_to_x_0']['value']:12.3g}{r['ssim_to_x_0']['value']:7.3f}"
            elif section == "inferred_x_T":
                follows = f"{r['follows_z']['value']:.0%}" if "follows_z" in r else "–"
                tail = f"{_value(r['mse']):>32}{r['ssim']['value']:7.3f}{noise['neighbours']:12.3f}{noise['brightness']:12.2f}{follows:>11}"
            elif section == "drawn":
                tail = f"{_value(r['kid']):>32}"
            elif section == "intervals":
                tail = f"{_value(r['mse']):>32}{r['nearest_is_own']['value']:7.0%}{_value(r['kid']):>32}{r['follows_z']['value']:11.0%}"
            else:
                tail = f"{_value(r['mse']):>32}{r['ssim']['value']:7.3f}" if "mse" in r else f"{'':>39}"
                tail += f"{noise['neighbours']:12.3f}{noise['brightness']:12.2f}" if noise else ""
            lines.append(f"{line:46}{cost}{tail}")
    if "mixing" in result:
        m = result["mixing"]
        lines += ["", f"mixing two z: {m['speed_up']:.2f}× ({m['range'][0]:.2f} … {m['range'][1]:.2f}) as fast as two evaluations; "
                      f"arithmetic allows {m['allowed']:.2f}×: {m['share']:.0%} of it"]
    return "\n".join(lines)
