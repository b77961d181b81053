/* The sampling policy's page: a slider, a look at what rules match, and the processes as they turn.
   The page works without any of it; nothing here is needed to save. */
(() => {
  "use strict";

  const STEPS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.33, 0.5, 0.66, 0.75, 0.9, 1];
  const PRESETS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1];
  const PREVIEW_DELAY_MS = 250;
  const LONGEST_PAUSE_S = 30;

  const element = (name, properties = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };
  /* What this script says is written, translated, on the overview at the top of the page. */
  const texts = () => document.querySelector("[data-otel-status]")?.dataset ?? {};
  const percent = (ratio) => `${Number((ratio * 100).toPrecision(10))} %`;
  const isRatio = (text) => text.trim() !== "" && Number(text) >= 0 && Number(text) <= 1;

  /* --- The ratio: a slider with steps that are useful, small ones close together, and presets. --- */

  function addSlider(field) {
    const slider = element("input", {
      type: "range", min: 0, max: STEPS.length - 1, step: 1, className: "django-otel-slider", "aria-label": texts().otelRatioName,
    });
    const output = element("output", { className: "django-otel-percent", dir: "ltr", htmlFor: field.id });
    const presets = PRESETS.map((ratio) => {
      const button = element("button", { type: "button", value: ratio }, element("bdi", { dir: "ltr" }, percent(ratio)));
      button.addEventListener("click", () => choose(ratio));
      return button;
    });
    const show = () => {
      const isGood = isRatio(field.value);
      const ratio = Number(field.value);
      output.textContent = isGood ? percent(ratio) : "–";
      if (isGood) {
        const distances = STEPS.map((step) => Math.abs(Math.sqrt(step) - Math.sqrt(ratio)));
        slider.value = distances.indexOf(Math.min(...distances));
      }
      slider.setAttribute("aria-valuetext", output.textContent);
      presets.forEach((button) => button.setAttribute("aria-pressed", isGood && Number(button.value) === ratio));
    };
    const choose = (ratio) => {
      field.value = ratio;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    };
    slider.addEventListener("input", () => choose(STEPS[slider.value]));
    field.addEventListener("input", show);
    field.after(
      output,
      element("div", { className: "django-otel-turn" },
        slider,
        element("div", { className: "django-otel-chips", role: "group", "aria-label": texts().otelRatios }, ...presets)),
    );
    show();
  }

  /* --- Ends: the fields for a time only when a time is to be given. --- */

  function followEnd(choices, place) {
    const show = () => {
      const chosen = choices.find((choice) => choice.tagName === "SELECT" || choice.checked);
      place.hidden = Boolean(chosen) && chosen.value !== "";
    };
    choices.forEach((choice) => choice.addEventListener("change", show));
    show();
  }

  /* --- Rules. --- */

  function enhanceRule(row) {
    const field = (name) => row.querySelector(`[name$="-${name}"]`);
    const place = (name) => row.querySelector(`.django-otel-field.is-${name}`);
    const [path, route, ratio, lasts, remove] = ["path", "route", "ratio", "lasts", "DELETE"].map(field);

    // Path or route: one of two fields, chosen by a list.
    const kind = element("select", { id: `${path.id}-or-route` },
      element("option", { value: "path" }, texts().otelPath), element("option", { value: "route" }, texts().otelRoute));
    const showKind = () => {
      place("path").hidden = kind.value !== "path";
      place("route").hidden = kind.value !== "route";
    };
    kind.addEventListener("change", () => {
      const [from, to] = kind.value === "path" ? [route, path] : [path, route];
      if (from.value && !to.value) to.value = from.value;
      from.value = "";
      showKind();
      to.dispatchEvent(new Event("input", { bubbles: true }));
    });
    // With both filled in by hand, both stay in sight, for one has to go.
    if (!(path.value && route.value)) {
      kind.value = route.value ? "route" : "path";
      place("route").querySelector("label").textContent = `${texts().otelRoute}:`;
      place("path").before(element("div", { className: "django-otel-field is-kind" },
        element("label", { htmlFor: kind.id }, `${texts().otelMatchBy}:`), kind));
      showKind();
    }

    const output = element("output", { className: "django-otel-percent", dir: "ltr", htmlFor: ratio.id });
    const showRatio = () => { output.textContent = isRatio(ratio.value) ? percent(Number(ratio.value)) : ""; };
    ratio.addEventListener("input", showRatio);
    ratio.after(output);
    showRatio();

    followEnd([lasts], place("expires_at"));

    if (remove) {
      remove.addEventListener("change", () => row.classList.toggle("is-removed", remove.checked));
      row.classList.toggle("is-removed", remove.checked);
    } else {
      const button = element("button", { type: "button", className: "django-otel-link" }, texts().otelTakeBack);
      button.addEventListener("click", () => {
        const next = document.querySelector("[data-otel-add] button");
        row.querySelectorAll("input:not([type=hidden]), select").forEach((input) => {
          input.value = input.tagName === "SELECT" ? input.querySelector("option[selected]")?.value ?? input.options[0].value
            : input.defaultValue;
        });
        // As the server made it, and so no rule.
        row.hidden = true;
        row.dispatchEvent(new Event("input", { bubbles: true }));
        next?.focus();
      });
      row.querySelector(".django-otel-grid").append(element("div", { className: "django-otel-field is-remove" }, button));
    }
  }

  function showPreview(place, found) {
    place.replaceChildren();
    if (!found.summary) return;
    place.append(element("p", {}, found.summary));
    if (!found.routes.length) return;
    const list = element("ul");
    for (const match of found.routes) {
      const item = element("li", { className: `is-${match.kind}` }, element("code", {}, element("bdi", { dir: "ltr" }, match.route)));
      if (match.note) item.append(" ", element("span", {}, `(${match.note})`));
      list.append(item);
    }
    if (found.more) list.append(element("li", {}, found.more));
    place.append(list);
  }

  function followRules(group) {
    const prefix = group.dataset.otelRules;
    const rows = group.querySelector("[data-otel-rows]");
    const total = group.querySelector(`[name="${prefix}-TOTAL_FORMS"]`);
    const blank = group.querySelector("[data-otel-blank]");
    const add = group.querySelector("[data-otel-add]");
    const form = group.closest("form");
    let timer = 0;
    let latest = 0;

    const isBlank = (row) => !row.querySelector('[name$="-DELETE"]') && !row.classList.contains("errors")
      && ["path", "route", "ratio"].every((name) => !row.querySelector(`[name$="-${name}"]`).value);

    async function preview() {
      const ticket = ++latest;
      const content = new FormData();
      for (const [key, value] of new FormData(form)) {
        if (key.startsWith(`${prefix}-`) || key === "csrfmiddlewaretoken") content.append(key, value);
      }
      try {
        const answer = await fetch(group.dataset.otelRoutes, { method: "POST", body: content, credentials: "same-origin" });
        if (!answer.ok || answer.redirected || ticket !== latest) return;
        const { rules } = await answer.json();
        rows.querySelectorAll("[data-otel-rule]").forEach((row) => {
          const number = row.querySelector("[name]").name.split("-")[1];
          const found = rules[Number(number)];
          if (found) showPreview(row.querySelector("[data-otel-preview]"), found);
        });
      } catch {
        // The page stays as it is; the next change asks again.
      }
    }
    group.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(preview, PREVIEW_DELAY_MS);
    });

    const spare = [];
    rows.querySelectorAll("[data-otel-rule]").forEach((row) => {
      // Asked before it is enhanced: then it looks as the server made it.
      if (isBlank(row)) {
        row.hidden = true;
        spare.push(row);
      }
      enhanceRule(row);
    });
    if (!add) return;
    add.hidden = false;
    const button = add.querySelector("button");
    button.addEventListener("click", () => {
      let row = spare.shift();
      if (!row) {
        const copy = blank.content.firstElementChild.cloneNode(true);
        for (const named of [copy, ...copy.querySelectorAll("*")]) {
          for (const name of ["id", "name", "for", "aria-describedby"]) {
            const value = named.getAttribute(name);
            if (value?.includes("__prefix__")) named.setAttribute(name, value.replace("__prefix__", total.value));
          }
        }
        total.value = Number(total.value) + 1;
        rows.append(copy);
        enhanceRule(copy);
        row = copy;
      }
      row.hidden = false;
      row.querySelector(".is-path input").focus();
      button.disabled = Number(total.value) >= Number(group.dataset.otelMost);
    });
  }

  /* --- What is in force, and where. --- */

  function followStatus(overview) {
    const summary = overview.querySelector("[data-otel-summary]");
    let pause_s = 1;
    let timer = 0;

    const replace = (part, html) => {
      const place = overview.querySelector(`[data-otel-part="${part}"]`);
      if (place.dataset.otelLast === html) return;
      place.dataset.otelLast = html;
      // Made by the server's templates, which escape every value.
      place.innerHTML = html;
    };
    const say = (text) => {
      if (summary.textContent !== text) summary.textContent = text;
    };
    const wait = (reason) => {
      pause_s = Math.min(pause_s * 2, LONGEST_PAUSE_S);
      say(reason);
    };
    async function poll() {
      timer = 0;
      if (document.hidden) return;
      try {
        const answer = await fetch(overview.dataset.otelStatus, { credentials: "same-origin", cache: "no-store" });
        if (answer.redirected || answer.status === 403) {
          say(texts().otelSignedOut);
          return;
        }
        if (answer.status === 503 && answer.headers.get("Content-Type") === "application/json") {
          wait((await answer.json()).problem);
        } else if (answer.ok) {
          const found = await answer.json();
          for (const [part, html] of Object.entries(found.html)) replace(part, html);
          say(found.summary);
          overview.classList.toggle("is-settled", found.is_settled);
          pause_s = found.next_s;
        } else {
          wait(texts().otelSilent);
        }
      } catch {
        wait(texts().otelSilent);
      }
      timer = setTimeout(poll, pause_s * 1000);
    }
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && !timer) poll();
    });
    timer = setTimeout(poll, pause_s * 1000);
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.documentElement.classList.add("django-otel-js");
    document.querySelectorAll("[data-otel-ratio]").forEach(addSlider);
    const end = document.querySelector(".form-row.field-expires_at");
    const lasts = [...document.querySelectorAll('.form-row.field-lasts input[type="radio"]')];
    if (end && lasts.length) followEnd(lasts, end);
    document.querySelectorAll("[data-otel-rules]").forEach(followRules);
    document.querySelectorAll("[data-otel-status]").forEach(followStatus);
  });
})();
