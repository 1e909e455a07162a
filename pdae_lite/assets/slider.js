(function () {
  var script = document.currentScript, root = script && script.closest(".pdae-slider") || document.getElementById("SLIDER-ID");
  var input = root.querySelector("input"), output = root.querySelector("output"), frames = root.querySelectorAll("figure");
  function show() {
    var now = +input.value;
    for (var i = 0; i < frames.length; i++) frames[i].classList.toggle("on", i === now);
    var text = frames[now].querySelector("figcaption").textContent;
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  }
  input.addEventListener("input", show);
  root.classList.add("live");
  show();
})();
