// Asks the server's own endpoints and shows what they answer. Whatever comes from outside is set as text, never as HTML.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const LONGEST = 12; // scores of a task that are shown at first
  const LOAD_EVERY = 2000; // ms
  const chosen = new Set();
  let tasks = [];
  let version = null; // of the list of tasks
  let asked = 0;

  function make(tag, text = "", className = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  async function call(path, body, byItself = false) {
    const headers = {};
    if (/[^\x20-\xff]/.test(at("key").value.trim())) throw new Error("The key has characters that no key can have.");
    if (at("key").value) headers.Authorization = "Bearer " + at("key").value.trim();
    if (body) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
    } catch {
      throw new Error("The server cannot be reached.");
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) {
      if (response.status === 401 && !byItself) at("key-box").open = true;
      throw new Error(answer.error?.message ?? "The server answered " + response.status + ".");
    }
    return answer;
  }

  const show = (error) => (at("error").textContent = error ? error.message : "");

  // tasks

  async function list() {
    try {
      const answer = await call("v1/tasks");
      tasks = answer.tasks;
      at("backbone").textContent = answer.backbone + " · " + tasks.length + (tasks.length === 1 ? " task" : " tasks");
      for (const name of chosen) if (!tasks.some((task) => task.name === name)) chosen.delete(name);
      draw();
      show();
    } catch (error) {
      at("backbone").textContent = "No tasks yet";
      show(error);
    }
  }

  const shown = () => tasks.filter((task) => task.name.toLowerCase().includes(at("filter").value.toLowerCase()));

  function draw() {
    const focused = document.activeElement?.dataset.task; // is drawn anew, and keeps the focus
    at("tasks").replaceChildren(
      ...shown().map((task) => {
        const box = make("input");
        box.type = "checkbox";
        box.dataset.task = task.name;
        box.checked = chosen.has(task.name);
        box.addEventListener("change", () => {
          box.checked ? chosen.add(task.name) : chosen.delete(task.name);
          count();
        });
        const label = make("label");
        label.append(box, make("span", task.name), make("small", kind(task)));
        const item = make("li");
        item.append(label);
        return item;
      }),
    );
    if (focused !== undefined) at("tasks").querySelector(`[data-task="${CSS.escape(focused)}"]`)?.focus();
    count();
  }

  const count = () => (at("chosen").textContent = chosen.size + " chosen, " + shown().length + " shown");

  function kind(task) {
    const words = { multi_label: "any labels", regression: "number", tokens: "words", embedding: "vector" };
    return words[task.kind] ?? task.labels.length + " labels";
  }

  function choose(names, on) {
    for (const name of names) on ? chosen.add(name) : chosen.delete(name);
    draw();
  }

  // answers

  async function ask() {
    const [text, pair] = [at("text").value, at("pair").value];
    if (!chosen.size) return show(new Error("Choose at least one task."));
    if (!text.trim()) return show(new Error("Write a text."));
    const requests = [...chosen].sort().map((task) => (pair.trim() ? { task, text, pair } : { task, text }));
    const mine = ++asked; // a later question's answers are not replaced by an earlier one's
    at("send").disabled = true;
    at("status").textContent = "Asking …";
    const start = performance.now();
    try {
      const { results } = await call("v1/batch", { requests });
      if (mine !== asked) return;
      at("answers").replaceChildren(...results.map((result) => card(result, text)));
      const ms = Math.round(performance.now() - start);
      const failed = results.filter((result) => result.error).length;
      at("status").textContent =
        results.length + (results.length === 1 ? " answer in " : " answers in ") + ms + " ms" +
        (failed ? ", " + failed + " failed" : "") + ".";
      at("status").scrollIntoView({ block: "nearest" }); // on a narrow screen the answers are below
      show();
    } catch (error) {
      at("status").textContent = "No answer.";
      show(error);
    } finally {
      at("send").disabled = false;
    }
  }

  function card(answered, text) {
    const task = tasks.find((one) => one.name === answered.task);
    const element = make("article");
    const header = make("header");
    header.append(make("h3", answered.task), make("small", task ? kind(task) : ""));
    element.append(header);
    const result = answered.result;
    if (answered.error) element.append(make("p", answered.error.message, "failed"));
    else if (result.scores) element.append(...scores(result));
    else if (result.entities) {
      element.className = "wide";
      element.append(marked(text, result.entities));
    } else if (result.embedding) element.append(vector(result.embedding));
    else element.append(make("p", result.value === null ? "no number" : result.value.toPrecision(4), "number"));
    return element;
  }

  function scores(result) {
    const said = new Set(result.labels ?? [result.label]);
    const rows = Object.entries(result.scores).sort((one, other) => other[1] - one[1]);
    const list = make("ul", "", "scores");
    list.append(
      ...rows.slice(0, LONGEST).map(([label, score]) => {
        const item = make("li", "", said.has(label) ? "said" : "");
        const bar = make("span", "", "bar");
        bar.style.width = 100 * score + "%"; // through the object model, which the policy for styles allows
        bar.setAttribute("aria-hidden", "true");
        item.append(bar, make("span", label), make("span", (100 * score).toFixed(1) + " %"));
        return item;
      }),
    );
    const rest = rows.length - LONGEST;
    return rest > 0 ? [list, make("small", "and " + rest + " more labels")] : [list];
  }

  function marked(text, entities) {
    const characters = [...text]; // offsets count code points
    const line = make("p", "", "marked");
    let end = 0;
    for (const entity of entities) {
      line.append(characters.slice(end, entity.start).join(""));
      const mark = make("mark", characters.slice(entity.start, entity.end).join(""));
      mark.append(" ", make("small", entity.label + " " + Math.round(100 * entity.score) + " %"));
      line.append(mark);
      end = entity.end;
    }
    line.append(characters.slice(end).join(""));
    return line;
  }

  function vector(numbers) {
    const first = numbers.slice(0, 8).map((number) => number.toFixed(3));
    return make("p", "[" + first.join(", ") + (numbers.length > 8 ? ", …" : "") + "] of " + numbers.length, "vector");
  }

  // load

  const milliseconds = (seconds) => (1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0) + " ms";

  async function load() {
    if (document.hidden) return;
    try {
      const now = await call("v1/load", null, true);
      at("load-rate").textContent = now.texts_per_second.toFixed(1);
      at("load-queued").textContent = now.queued;
      at("load-batch").textContent = now.batch_examples.toFixed(1);
      at("load-mix").textContent = now.batch_tasks.toFixed(1);
      at("load-p50").textContent = milliseconds(now.latency.p50);
      at("load-p95").textContent = milliseconds(now.latency.p95);
      if (now.tasks_version !== version) await list();
      version = now.tasks_version;
    } catch {
      for (const value of document.querySelectorAll("#load dd")) value.textContent = "–"; // not reached, or no key yet
    }
  }

  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !at("send").disabled) {
      event.preventDefault();
      ask();
    }
  });
  at("filter").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) event.preventDefault(); // filters, does not ask
  });
  at("filter").addEventListener("input", draw);
  at("all").addEventListener("click", () => choose(shown().map((task) => task.name), true));
  at("none").addEventListener("click", () => choose([...chosen], false));
  at("key").addEventListener("change", list);
  list().then(load);
  setInterval(load, LOAD_EVERY);
})();
