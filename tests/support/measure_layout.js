// Measures the layout of `pages` (HTML by name) in frames of the given `widths` and writes what is wrong with it, as
// JSON, into <pre id="measured">. Runs in the measuring page of browser.py, which defines `pages` and `widths`.
const problems = [];

function label(element) {
  const classes = element.getAttribute("class");
  return `${element.tagName.toLowerCase()}${classes ? "." + classes : ""} "${element.textContent.trim().slice(0, 40)}"`;
}

function checkElement(element, width, view, say) {
  const box = element.getBoundingClientRect();
  const style = view.getComputedStyle(element);
  const plot = element.closest("svg");
  const scroller = element.closest(".scroll");
  const hidden = element.scrollWidth > element.clientWidth + 1;
  if (plot && element.tagName === "use") {
    const frame = plot.getBoundingClientRect();
    const inside = box.left >= frame.left - 1 && box.right <= frame.right + 1
      && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
    if (!inside) say(`text of the plot "${plot.getAttribute("aria-label").slice(0, 40)}" is cut`);
  }
  if (plot && element !== plot) return;
  if (element === plot && (box.width < Math.min(240, width / 2) || box.height < 60)) say("a plot is tiny");
  if (element.closest(".unseen")) return;
  if ((!scroller || element === scroller) && (box.right > width + 1 || box.left < -1)) say(`${label(element)} is outside`);
  if (element === scroller) {
    const reachable = element.tabIndex === 0 && style.overflowX === "auto" && element.getAttribute("aria-label");
    if (hidden && !reachable) say(`${label(element)} cannot be scrolled by keyboard`);
  } else if (style.overflowX !== "visible" && hidden) {
    say(`${label(element)} is cut`);
  }
  if (element.matches("caption:not(.unseen) span, .stack i") && hidden) say(`${label(element)} is cut`);
}

function checkPage(name, width, view) {
  const say = (text) => problems.push(`${name} at ${width}: ${text}`);
  for (const details of view.document.querySelectorAll("details")) details.open = true;
  if (view.innerWidth !== width) say(`the frame is ${view.innerWidth} pixels wide`);
  const scrollWidth = view.document.documentElement.scrollWidth;
  if (scrollWidth > width) say(`the page is ${scrollWidth} pixels wide`);
  for (const element of view.document.body.querySelectorAll("*")) checkElement(element, width, view, say);
}

function measure(name, width) {
  return new Promise((done) => {
    const frame = document.createElement("iframe");
    Object.assign(frame.style, { width: `${width}px`, height: "900px", border: "0" });
    frame.srcdoc = pages[name];
    frame.onload = () => {
      checkPage(name, width, frame.contentWindow);
      frame.remove();
      done();
    };
    document.body.append(frame);
  });
}

Promise.all(Object.keys(pages).flatMap((name) => widths.map((width) => measure(name, width)))).then(() => {
  document.body.innerHTML = '<pre id="measured"></pre>';
  document.getElementById("measured").textContent = JSON.stringify(problems);
});
