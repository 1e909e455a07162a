// Keep <i> elements in place, so that buttons of ipywidgets (Play) find their icons again.
window.FontAwesomeConfig = { autoReplaceSvg: "nest" };
