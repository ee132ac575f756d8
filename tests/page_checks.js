// What the browser tests ask of a page; added to every page that they open.
window.checks = {
  charts: () =>
    [...document.querySelectorAll("div.chart")].map((chart) => ({
      id: chart.id,
      drawn: chart.dataset.drawn,
      marks: chart.querySelectorAll(".chart-view svg [class*=mark-] > *").length,
      words: chart.querySelector(".chart-view").getAttribute("aria-label"),
      data: chart.querySelectorAll(".chart-data button").length,
      width: chart.querySelector(".chart-view svg").getBoundingClientRect().width,
      beyond: [...chart.querySelectorAll(".chart-view svg text")].filter(
        (each) => each.getBoundingClientRect().right > chart.querySelector("svg").getBoundingClientRect().right + 1,
      ).length,
    })),

  formulas: () => ({
    unset: [...document.querySelectorAll(".math")]
      .filter((each) => !each.querySelector("mjx-container"))
      .map((each) => each.textContent),
    wrong: [...document.querySelectorAll("[data-mjx-error], [data-mml-node=merror]")].map(
      (each) => each.getAttribute("data-mjx-error") || each.textContent,
    ),
    unread: [...document.querySelectorAll("mjx-container")].filter((each) => !each.querySelector("mjx-assistive-mml"))
      .length,
  }),

  pictures: () =>
    [...document.querySelectorAll("main img")]
      .filter((each) => !(each.getAttribute("alt") || "").trim() || !each.naturalWidth)
      .map((each) => each.getAttribute("src")),

  sameIds: () => {
    const ids = [...document.querySelectorAll("main [id]")]
      .filter((each) => !each.closest("svg, mjx-container"))
      .map((each) => each.id);
    return [...new Set(ids.filter((id, index) => ids.indexOf(id) !== index))];
  },

  // What reaches beyond the window, unless something that scrolls on its own holds it.
  overflow: () => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const held = (each) => {
      for (let above = each.parentElement; above && above !== document.body; above = above.parentElement)
        if (getComputedStyle(above).overflowX !== "visible") return true;
      return false;
    };
    return [...document.body.querySelectorAll("*")]
      .filter((each) => each.getBoundingClientRect().right > width + 1 && !held(each))
      .map((each) => `${each.tagName}.${each.className}: ${(each.textContent || "").slice(0, 60)}`)
      .slice(0, 10);
  },

  // Text whose contrast with what is behind it is below a bound (WCAG's ratio).
  faint: (bound) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const seen = new Map();
    const rgba = (text) => {
      if (!seen.has(text)) {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = text;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        seen.set(text, [r, g, b, a / 255]);
      }
      return seen.get(text);
    };
    const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const luminance = (colour) => {
      const [r, g, b] = colour
        .slice(0, 3)
        .map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (each) => {
      const layers = [];
      for (let above = each; above; above = above.parentElement)
        layers.unshift(rgba(getComputedStyle(above).backgroundColor));
      return layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    // The tile of a chart that a label is written on, if there is one; a frame has nothing inside.
    const tiles = [...document.querySelectorAll("div.chart .mark-rect path")]
      .map((tile) => [tile.getBoundingClientRect(), getComputedStyle(tile)])
      .filter(([, style]) => style.fill !== "none");
    const tileBelow = (box) => {
      const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
      const on = tiles.filter(([r]) => r.left <= x && x <= r.right && r.top <= y && y <= r.bottom);
      return on.length ? on[on.length - 1][1].fill : "transparent";
    };
    const found = new Map();
    for (const each of (document.querySelector("main") || document.body).querySelectorAll("*")) {
      const inSvg = each.namespaceURI.endsWith("svg");
      const hasText = [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!hasText || !each.getClientRects().length || getComputedStyle(each).visibility === "hidden") continue;
      if (each.closest("script, style, noscript, mjx-assistive-mml, .headerlink, .copybtn")) continue;
      const page = behind(inSvg ? each.closest("div") : each);
      const back = inSvg ? over(rgba(tileBelow(each.getBoundingClientRect())), page) : page;
      const style = getComputedStyle(each);
      const ink = over(rgba(inSvg ? style.fill : style.color), back);
      const [low, high] = [luminance(ink), luminance(back)].sort((a, b) => a - b);
      const ratio = (high + 0.05) / (low + 0.05);
      const name = `${each.tagName}.${each.getAttribute("class")}: ${each.textContent.trim().slice(0, 40)}`;
      if (ratio < bound) found.set(name, ratio);
    }
    return [...found].slice(0, 10).map(([name, ratio]) => `${ratio.toFixed(2)} ${name}`);
  },
};
