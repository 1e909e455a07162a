// Printed tables keep their columns: they scroll, where sentences wrap. And what scrolls sideways can be reached by keyboard.
(function () {
  function isTable(text) {
    return text.split("\n").filter(function (line) { return / {2,}\S/.test(line.trim()); }).length > 1;
  }
  function mark() {
    document.querySelectorAll("article div.math, article mjx-container[display], article .wide-table, article .wide-table td, article pre, " +
        "article .pst-scrollable-table-container")
      .forEach(function (box) {
        if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
        else if (box.getAttribute("tabindex") === "0" && box.tagName !== "PRE") box.removeAttribute("tabindex");
      });
  }
  window.addEventListener("load", mark);
  window.addEventListener("resize", mark);
  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("article .cell_output pre").forEach(function (pre) {
      pre.classList.toggle("columns", isTable(pre.textContent));
    });
    var ready = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
    if (ready) ready.then(mark);
    if (window.ResizeObserver) document.querySelectorAll("article").forEach(function (a) { new ResizeObserver(mark).observe(a); });
  });
})();
