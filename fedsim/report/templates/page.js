// What a report gains where scripts run: theme, sorting, filters, enlarged images, values of points. Without it all is there to read.
"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  function element(name, attributes = {}, ...content) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...content);
    return made;
  }

  // Theme: the system's until one is chosen. Browsers may keep nothing for files, which is no reason to fail.
  const remembered = {
    read() {
      try { return localStorage.getItem("fedsim-theme"); } catch { return null; }
    },
    write(theme) {
      try { localStorage.setItem("fedsim-theme", theme); } catch { /* for this page alone, then */ }
    },
  };
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  if (["dark", "light"].includes(remembered.read())) root.dataset.theme = remembered.read();

  function offerThemes() {
    const button = element("button", { type: "button", class: "theme" });
    const say = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remembered.write(root.dataset.theme);
      say();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
    say();
    document.querySelector("body > header").append(button);
  }

  // Tables: rows that a cell spans stay together.
  const SEVERITY = ["leaks", "partial", "inconclusive", "resisted"];
  const NUMBER = /^[-+\u2212]?(?:\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\u221e)/i;

  function valueOf(cell) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode.data.trim();
      if (!text) continue;
      const badge = texts.currentNode.parentElement.closest(".verdict");
      if (badge) return SEVERITY.findIndex((name) => badge.classList.contains(name));
      if (/^[-\u2013]$/.test(text)) return null;
      const number = text.match(NUMBER);
      if (!number) return text;
      const plain = number[0].replace("\u2212", "-").replace(/,/g, "");
      return plain.endsWith("\u221e") ? (plain.startsWith("-") ? -Infinity : Infinity) : Number(plain);
    }
    return null;
  }

  function compared(one, other) {
    if (typeof one === "number" && typeof other === "number") return one - other || 0;
    return String(one).localeCompare(String(other), undefined, { numeric: true });
  }

  function unitsOf(table) {
    return table.querySelector("tbody [rowspan]") ? [...table.tBodies] : all("tbody > tr", table);
  }

  function makeSortable(table) {
    const heads = table.tHead ? [...table.tHead.rows[0].cells] : [];
    const units = unitsOf(table);
    if (units.length < 2) return;
    const places = units.map((unit) => unit.parentNode);
    const rowsOf = (unit) => (unit.rows ? [...unit.rows] : [unit]);
    const cellOf = (row, column) => row.cells[column - (heads.length - row.cells.length)];
    heads.forEach((head, column) => {
      const button = element("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const order = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
        heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
        const sign = order === "descending" ? -1 : 1;
        const keyed = units.map((unit) => {
          const values = rowsOf(unit).map((row) => cellOf(row, column)).filter(Boolean).map(valueOf).filter((value) => value !== null);
          return [values.sort((a, b) => sign * compared(a, b))[0] ?? null, unit];
        });
        if (order !== "none") {
          keyed.sort(([one], [other]) => (one === null) - (other === null) || (one === null ? 0 : sign * compared(one, other)));
        }
        keyed.forEach(([, unit], position) => places[position].append(unit));
      });
    });
  }

  function makeFilter(line) {
    const input = line.querySelector("input"), output = line.querySelector("output");
    const table = line.parentElement.querySelector("table");
    const units = unitsOf(table), texts = units.map((unit) => unit.textContent.toLowerCase());
    line.hidden = false;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      units.forEach((unit, position) => {
        unit.hidden = !words.every((word) => texts[position].includes(word));
        shown += !unit.hidden;
      });
      output.textContent = words.length ? `${shown} of ${units.length} shown` : "";
    });
  }

  // A target inside something closed or filtered away is shown before the browser goes there.
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let up = target; up; up = up.parentElement) {
      if (up.tagName === "DETAILS") up.open = true;
      if (up.hidden) {
        const input = up.closest(".listing")?.querySelector(".filter input");
        if (input) { input.value = ""; input.dispatchEvent(new Event("input")); }
      }
    }
    target.scrollIntoView();
  }

  // Enlarged images and plots.
  let dialog;
  function enlarge(title, ...content) {
    if (!dialog) {
      dialog = element("dialog", { "aria-labelledby": "enlarged" });
      dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
      document.body.append(dialog);
    }
    const close = element("button", { type: "button" }, "Close");
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(element("header", {}, element("p", { id: "enlarged" }, title), close), ...content);
    dialog.showModal();
  }

  function enlarged(image) {
    const copy = image.cloneNode();
    const ratio = image.naturalWidth / image.naturalHeight;
    const width = Math.min(innerWidth * 0.86, innerHeight * 0.36 * ratio, image.naturalWidth * 16);
    copy.removeAttribute("height");
    copy.style.width = `${Math.round(Math.max(width, image.width))}px`;
    return element("figure", {}, copy, element("figcaption", {}, image.alt));
  }

  function makeZoomable(image) {
    const button = element("button", { type: "button", class: "zoom", "aria-label": `Enlarge: ${image.alt}` });
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => {
      const first = image.closest(".strips")?.querySelector("img");
      const beside = first && first !== image && first.alt.startsWith("Original") ? [first] : [];
      enlarge(image.alt, element("div", { class: "pair" }, ...[...beside, image].map(enlarged)));
    });
  }

  // A slider over the columns of a trajectory: the images of one iteration beside the originals.
  function makePlayer(figure) {
    const image = figure.querySelector("img");
    const steps = figure.dataset.steps.split(" "), psnr = figure.dataset.psnr.split("|");
    if (steps.length < 2) return;
    const columns = steps.length + 1 + 1 / 8, side = 128;
    const view = (position, name) => {
      const copy = element("img", { src: image.src, alt: "", class: image.className });
      copy.style.width = `${columns * side}px`;
      const frame = element("div", { class: "frame" }, copy);
      const move = (to) => { copy.style.marginLeft = `${-to * side}px`; };
      move(position);
      return { move, whole: element("div", {}, frame, element("p", {}, name)) };
    };
    const current = view(0, "Iterate"), original = view(columns - 1, "Original");
    const slider = element("input", { type: "range", min: 0, max: steps.length - 1, step: 1, "aria-label": "Iteration" });
    const output = element("output");
    const show = () => {
      const position = Number(slider.value);
      current.move(position);
      output.textContent = `Iteration ${steps[position]}: PSNR ${psnr[position]}`;
      slider.setAttribute("aria-valuetext", output.textContent);
    };
    slider.value = steps.length - 1;
    slider.addEventListener("input", show);
    show();
    const views = element("div", { class: "views" }, current.whole, original.whole);
    figure.prepend(element("div", { class: "player" }, views, element("p", {}, slider, output)));
  }

  // Values of the points of a plot, by pointer and by arrow keys.
  const tip = element("div", { class: "tip", role: "status" });
  tip.hidden = true;

  function makeAskable(svg) {
    const points = all("use", svg).filter((point) => point.querySelector("title")).map((point) => {
      const title = point.querySelector("title");
      title.remove();
      return { point, text: title.textContent, line: point.closest("g:has(> path)") || point.parentNode, x: Number(point.getAttribute("x")), y: Number(point.getAttribute("y")) };
    });
    if (!points.length) return;
    const lines = new Set(points.map(({ line }) => line));
    points.sort((one, other) => one.x - other.x || one.y - other.y);
    let current = -1;
    const hide = () => {
      tip.hidden = true;
      current = -1;
      lines.forEach((line) => line.classList.remove("faded"));
      points.forEach(({ point }) => point.classList.remove("asked"));
    };
    const show = (position) => {
      hide();
      current = position;
      const { point, text, line, x, y } = points[position];
      lines.forEach((other) => other.classList.toggle("faded", other !== line));
      point.classList.add("asked");
      tip.textContent = text;
      tip.hidden = false;
      const place = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
      const width = tip.offsetWidth;
      tip.style.left = `${scrollX + Math.min(Math.max(8, place.x - width / 2), root.clientWidth - width - 8)}px`;
      tip.style.top = `${scrollY + place.y - tip.offsetHeight - 12}px`;
    };
    svg.addEventListener("pointermove", (event) => {
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const away = points.map(({ x, y }) => Math.hypot(x - place.x, y - place.y));
      const nearest = away.indexOf(Math.min(...away));
      if (away[nearest] > 14) hide();
      else if (nearest !== current) show(nearest);
    });
    svg.addEventListener("pointerleave", hide);
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        show(current < 0 ? (step > 0 ? 0 : points.length - 1) : (current + step + points.length) % points.length);
      } else if (event.key === "Escape") hide();
    });
  }

  function makePlotZoomable(figure) {
    const caption = figure.querySelector("figcaption"), title = caption.textContent;
    const button = element("button", { type: "button", class: "enlarge", "aria-label": `Enlarge: ${title}` }, "Enlarge");
    button.addEventListener("click", () => {
      const copy = figure.querySelector("svg").cloneNode(true);
      copy.removeAttribute("tabindex");
      enlarge(title, element("div", { class: "scroll" }, copy));
    });
    caption.append(" ", button);
  }

  function markScrolling() {
    all(".scroll").forEach((box) => {
      const label = box.querySelector("caption")?.textContent || box.closest("section")?.querySelector("h2")?.textContent;
      if (box.scrollWidth <= box.clientWidth || !label) return;
      Object.entries({ tabindex: "0", role: "region", "aria-label": label }).forEach(([key, value]) => box.setAttribute(key, value));
    });
  }

  function followReading() {
    const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
    const seen = new Set();
    const watcher = new IntersectionObserver((changes) => {
      changes.forEach(({ target, isIntersecting }) => seen[isIntersecting ? "add" : "delete"](target.id));
      const first = [...links.keys()].find((id) => seen.has(id));
      links.forEach((link, id) => (id === first ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    }, { rootMargin: "-10% 0px -60% 0px" });
    all("main > section[id]").forEach((section) => watcher.observe(section));
  }

  // Paper shows all: what is closed opens for the print, and closes again.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => opened.splice(0).forEach((details) => { details.open = false; }));

  document.addEventListener("DOMContentLoaded", () => {
    offerThemes();
    all("table").forEach(makeSortable);
    all(".filter").forEach(makeFilter);
    all(".trajectory[data-steps]").forEach(makePlayer);
    all("figure > img").forEach(makeZoomable);
    all(".plot svg").forEach(makeAskable);
    all(".plot").forEach(makePlotZoomable);
    document.body.append(tip);
    markScrolling();
    followReading();
    addEventListener("hashchange", reveal);
    if (location.hash) reveal();
  });
})();
