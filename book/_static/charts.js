// Draws the book's charts: each <div class="chart"> holds an inert Vega-Lite specification.
(() => {
  "use strict";

  const VEGA = new URL("vendor/vega.js", document.currentScript.src).href;
  const INK = {
    light: { text: "#212529", line: "#6c757d", grid: "#ced4da" },
    dark: { text: "#e6e6e6", line: "#adb5bd", grid: "#495057" },
  };

  const isDark = () => document.documentElement.dataset.theme === "dark";

  // The specification in the colours of the present theme, for some width; a chart's own choices win.
  function themed(spec, width) {
    const ink = isDark() ? INK.dark : INK.light;
    const text = JSON.stringify(spec);
    const copy = JSON.parse(isDark() ? text.replaceAll('"#000000"', '"#ffffff"') : text);
    const own = copy.config || {};
    const words = { labelColor: ink.text, titleColor: ink.text };
    copy.config = {
      ...own,
      axis: { domainColor: ink.line, tickColor: ink.line, gridColor: ink.grid, ...words, ...own.axis },
      legend: { ...words, ...own.legend, ...(width < 480 ? { columns: 1 } : {}) },
      header: { ...words, ...own.header },
      title: { color: ink.text, subtitleColor: ink.text, ...own.title },
      text: { color: ink.text, ...own.text },
      rule: { color: ink.line, ...own.rule },
    };
    return copy;
  }

  function csv(rows) {
    const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((c) => !c.startsWith("_"));
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = rows.map((row) => columns.map((c) => cell(row[c])).join(","));
    return [columns.join(","), ...lines].join("\n") + "\n";
  }

  // The tables behind a chart: those that it brings along, else the last one that it computes.
  function tables(chart) {
    const given = Object.values(chart.spec.datasets || {});
    if (given.length) return given;
    const computed = chart.names.map((name) => chart.view.data(name)).filter((rows) => rows.length);
    return computed.slice(-1);
  }

  function offerData(chart) {
    const place = document.createElement("p");
    place.className = "chart-data";
    const count = Math.max(1, Object.keys(chart.spec.datasets || {}).length);
    for (let i = 0; i < count; i++) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = count > 1 ? `Data ${i + 1} (CSV)` : "Data (CSV)";
      button.addEventListener("click", () => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([csv(tables(chart)[i] || [])], { type: "text/csv" }));
        link.download = count > 1 ? `${chart.root.id}-${i + 1}.csv` : `${chart.root.id}.csv`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      });
      place.append(button);
    }
    chart.root.append(place);
  }

  async function draw(chart) {
    const spec = themed(chart.spec, chart.root.clientWidth);
    if (chart.view) {
      // What the reader has set stays set when the theme changes.
      for (const parameter of spec.params || []) {
        if ("value" in parameter) parameter.value = chart.view.signal(parameter.name);
      }
      chart.view.finalize();
      chart.controls.replaceChildren();
    }
    const result = await window.vegaEmbed(chart.place, spec, {
      actions: false,
      renderer: "svg",
      bind: chart.controls,
      tooltip: { theme: isDark() ? "dark" : "light" },
    });
    chart.view = result.view;
    chart.names = result.vgSpec.data.map((table) => table.name);
    chart.root.dataset.drawn = isDark() ? "dark" : "light";
  }

  // What the reader sets in one chart is set in every other that has a parameter of that name without control.
  function share(chart, charts) {
    for (const { name, bind, expr } of chart.spec.params || []) {
      const follows = (other) => (other.spec.params || []).some((p) => p.name === name && "value" in p && !p.bind);
      const others = bind || expr ? charts.filter(follows) : [];
      if (others.length) {
        chart.view.addSignalListener(name, (_, value) => others.forEach((o) => o.view.signal(name, value).runAsync()));
      }
    }
  }

  // Where a chart cannot be drawn, its picture takes its place.
  function showPicture(root, error) {
    console.error(`chart ${root.id}: ${error}`);
    const fallback = root.parentElement.querySelector("noscript");
    if (fallback) root.querySelector(".chart-view").innerHTML = fallback.textContent;
  }

  async function start() {
    const roots = [...document.querySelectorAll("div.chart")];
    if (!roots.length) return;
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = VEGA;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${VEGA} cannot be loaded`));
      document.head.append(script);
    }).catch((error) => roots.forEach((root) => showPicture(root, error)));
    if (!window.vegaEmbed) return;

    const charts = [];
    for (const root of roots) {
      const chart = {
        root,
        place: root.querySelector(".chart-view"),
        controls: root.appendChild(Object.assign(document.createElement("form"), { className: "chart-controls" })),
        spec: JSON.parse(root.querySelector('script[type="application/json"]').textContent),
      };
      try {
        await draw(chart);
        offerData(chart);
        charts.push(chart);
      } catch (error) {
        showPicture(root, error);
      }
    }
    charts.forEach((chart) => share(chart, charts));
    window.molrgCharts = charts;
    document.documentElement.dataset.charts = "drawn";
    const redraw = (chart) => draw(chart).then(() => share(chart, charts));
    new MutationObserver(() => charts.forEach((chart) => redraw(chart).catch((e) => showPicture(chart.root, e)))).observe(
      document.documentElement,
      { attributes: true, attributeFilter: ["data-theme"] },
    );
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
