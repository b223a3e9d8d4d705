// What is wrong with how the page's texts look, a line each.
(() => {
  const wrong = [];
  for (const one of document.getAnimations()) if (one instanceof CSSTransition) one.finish();
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    wrong.push(`the page is ${root.scrollWidth} px wide, the window ${root.clientWidth}`);
  }

  const up = (element) => (element ? [element, ...up(element.parentElement)] : []);
  const styles = (element) => up(element).map((one) => getComputedStyle(one));

  for (const element of document.querySelectorAll("main, main *")) {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    if (scrolls && element.scrollWidth > element.clientWidth) wrong.push(`${element.className} scrolls sideways`);
  }

  // The part of a box that no element around it cuts off by such an overflow.
  function seen(box, element, overflows) {
    const [left, top, right, bottom] = up(element)
      .filter((one) => overflows.includes(getComputedStyle(one).overflowX))
      .map((one) => one.getBoundingClientRect())
      .reduce(
        (all, one) => [
          Math.max(all[0], one.left),
          Math.max(all[1], one.top),
          Math.min(all[2], one.right),
          Math.min(all[3], one.bottom),
        ],
        [box.left, box.top, box.right, box.bottom],
      );
    return { left, top, right, bottom };
  }

  // WCAG 2.2, 1.4.3.
  function contrast(one, other) {
    const luminance = (colour) => {
      const parts = colour.map((part) => {
        const share = part / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  }
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);

  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    const isUnseen = styles(element).some((style) => style.clipPath !== "none");
    if (!node.data.trim() || !element.checkVisibility() || isUnseen) continue;
    if (element.closest("script, noscript, option")) continue;
    const around = styles(element);
    const isSolid = (style) => numbers(style.backgroundColor).length === 3;
    const paper = numbers(around.find(isSolid).backgroundColor);
    const body = numbers(getComputedStyle(document.body).backgroundColor);
    const opacity = around.reduce((all, style) => all * Number(style.opacity), 1);
    const through = (colour) => colour.map((part, at) => part * opacity + body[at] * (1 - opacity));
    const ratio = contrast(through(numbers(around[0].color)), through(paper));
    if (ratio < 4.5) wrong.push(`contrast of ${ratio.toFixed(1)}: ${node.data}`);
    // Frames are cut where they are narrow, as flamegraphs are.
    if (element.closest("#graph")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    // A box a line.
    for (const box of range.getClientRects()) {
      const cut = seen(box, element, ["hidden", "clip"]);
      const part = seen(cut, element, ["auto", "scroll"]);
      if (box.left < 0 || part.right > root.clientWidth) wrong.push(`outside: ${node.data}`);
      const isCut = cut.right - cut.left < box.width - 1 || cut.bottom - cut.top < box.height - 1;
      // On a phone there is nothing that could be hovered.
      const mayBeCut = root.clientWidth > 700;
      const isTold = element.closest("[title]")?.title.includes(node.data.trim());
      if (isCut && !(mayBeCut && isTold)) wrong.push(`cut: ${node.data}`);
      texts.push({ node, ...part });
    }
  }
  const isHead = (text) => text.node.parentElement.closest("thead");
  for (const cell of document.querySelectorAll("td.number:not([data-label])")) {
    const left = cell.getBoundingClientRect().left;
    const isUnder = (text) => isHead(text) && text.right > left && text.left < left + cell.clientWidth;
    if (cell.checkVisibility() && !texts.some(isUnder)) wrong.push(`a number without a heading: ${cell.innerText}`);
  }
  for (const [at, one] of texts.entries()) {
    for (const other of texts.slice(at + 1)) {
      const width = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const height = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (one.node === other.node || width <= 1 || height <= 1) continue;
      wrong.push(`one over the other: ${one.node.data} and ${other.node.data}`);
    }
  }

  const graph = document.getElementById("graph");
  const rows = Map.groupBy(graph?.querySelectorAll("div") ?? [], (cell) => cell.style.top);
  for (const row of rows.values()) {
    const boxes = row.map((cell) => cell.getBoundingClientRect()).sort((a, b) => a.left - b.left);
    let end = graph.getBoundingClientRect().left;
    for (const box of boxes) {
      if (box.left < end - 0.1) wrong.push(`a frame begins at ${box.left}, before ${end}`);
      end = box.right;
    }
    if (end > graph.getBoundingClientRect().right + 0.1) wrong.push(`a frame ends at ${end}`);
  }
  return [...new Set(wrong)];
})()
