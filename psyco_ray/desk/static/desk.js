"use strict";
// Keys, autosave and dialogs of an item's page. Without this script the forms still work; only autosave is missing.

const RETRY_SECONDS = [1, 2, 4, 8, 15];
const IDLE_SECONDS = 120; // after that the time on an item does not count on

const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

/** What a person has answered, without the fields that change by themselves. */
function fields(form) {
  const data = new URLSearchParams(new FormData(form));
  for (const name of ["csrf", "base_version", "seconds", "go"]) data.delete(name);
  return data.toString();
}

async function post(form, address, body) {
  body.set("csrf", form.elements.csrf.value);
  const response = await fetch(address, { method: "POST", body, headers: { Accept: "application/json" } });
  const isJson = (response.headers.get("content-type") || "").includes("json");
  return { status: response.status, ...(isJson ? await response.json() : {}) };
}

/** After a new log-in in another tab: take over its token, if it is the same person's. */
async function renew(form) {
  const response = await fetch("/session", { headers: { Accept: "application/json" } });
  if (!response.ok) return;
  const session = await response.json();
  if (String(session.person) === form.dataset.person) form.elements.csrf.value = session.csrf;
}

/** Saves a form whenever it has changed, one request at a time; keeps trying while the server cannot be reached. */
class Saver {
  constructor(form, state) {
    Object.assign(this, { form, state, saved: fields(form), running: null, complete: form.dataset.complete === "true" });
  }

  get dirty() {
    return fields(this.form) !== this.saved;
  }

  say(text, bad = false) {
    this.state.textContent = text;
    this.state.classList.toggle("bad", bad);
  }

  /** Resolves to true when everything is saved. */
  now() {
    this.running ??= this.run().finally(() => { this.running = null; });
    return this.running;
  }

  async run() {
    let tries = 0;
    while (this.dirty) {
      const sent = fields(this.form);
      const slow = setTimeout(() => this.say("Saving…"), 400);
      const answer = await this.send(sent).catch(() => ({ status: 0 }));
      clearTimeout(slow);
      if (answer.status === 200) {
        Object.assign(this, { saved: sent, complete: answer.complete });
        this.form.elements.base_version.value = answer.version;
        continue;
      }
      if (answer.status === 409) return this.fail("Not saved: this item was changed in another window. Load the page again.");
      const login = answer.status === 401 || answer.status === 403;
      if (!login && answer.status !== 0 && answer.status < 500) return this.fail(`Not saved: ${answer.error || "the desk refused"}`);
      this.say(login ? "Not saved: log in again in another tab; then it is saved by itself."
        : "Not saved yet: the desk cannot be reached. It is tried again; keep this page open.", true);
      await sleep(RETRY_SECONDS[Math.min(tries++, RETRY_SECONDS.length - 1)]);
      if (login) await renew(this.form).catch(() => {});
    }
    const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    this.say(this.complete ? `Saved ${time}, complete.` : `Saved ${time}, not complete yet.`);
    return true;
  }

  send(text) {
    const body = new URLSearchParams(text);
    for (const name of ["base_version", "seconds"]) body.set(name, this.form.elements[name].value);
    return post(this.form, this.form.getAttribute("action"), body);
  }

  fail(text) {
    this.say(text, true);
    return false;
  }
}

/** The questions of a page, of which one is current: the one that has the focus, or the first without an answer. */
class Questions {
  constructor(form) {
    this.all = findAll(".question", form);
    form.addEventListener("focusin", (event) => {
      const question = event.target.closest(".question");
      if (question) this.mark(question);
    });
    this.mark(this.open() || this.all[0]);
  }

  mark(question) {
    this.current = question;
    for (const each of this.all) each.classList.toggle("now", each === question);
    question?.classList.remove("missing");
  }

  open() {
    return this.all.find((each) => !find("input:checked", each));
  }

  focus(question) {
    if (!question) return;
    (find("input:checked", question) || find("input", question)).focus();
    this.mark(question);
  }

  /** Answer the current question by a key and go to the next open one. */
  answer(key) {
    const choice = this.current && findAll("input", this.current).find((each) => each.dataset.keys.split(" ").includes(key));
    if (!choice) return false;
    choice.checked = true;
    choice.dispatchEvent(new Event("change", { bubbles: true }));
    const text = find({ edit: "#edit", reject: "[name=reasons]" }[choice.value] || "#none");
    if (text) return text.focus(), true;
    const after = this.all.slice(this.all.indexOf(this.current) + 1);
    this.focus(after.find((each) => !find("input:checked", each)) || this.open() || this.current);
    return true;
  }

  /** Go to the question of a letter; the same letter again goes to the next one of it. */
  jump(letter) {
    const matches = this.all.filter((each) => each.dataset.letter === letter);
    this.focus(matches[(matches.indexOf(this.current) + 1) % matches.length]);
    return matches.length > 0;
  }

  step(by) {
    this.focus(this.all[this.all.indexOf(this.current) + by]);
  }
}

function countSeconds(form) {
  let active = Date.now();
  for (const kind of ["keydown", "pointermove", "pointerdown", "scroll", "wheel"]) {
    addEventListener(kind, () => { active = Date.now(); }, { passive: true });
  }
  setInterval(() => {
    const counts = !document.hidden && !find("#pause").open && Date.now() - active < IDLE_SECONDS * 1000;
    if (counts) form.elements.seconds.value = Number(form.elements.seconds.value) + 1;
  }, 1000);
}

/** Draw the changes that the server has found; texts become text nodes. */
function draw(place, pieces) {
  place.replaceChildren(...pieces.map(([kind, text]) => {
    if (kind === "equal") return document.createTextNode(text);
    const element = document.createElement(kind === "insert" ? "ins" : "del");
    const name = document.createElement("span");
    name.className = "hidden-text";
    name.textContent = kind === "insert" ? "added: " : "removed: ";
    element.append(name, text.replaceAll("\n", "¶\n"));
    return element;
  }));
}

function watchEdit(form) {
  const edit = find("#edit", form);
  const place = find("#diff", form);
  if (!edit) return;
  let timer = 0;
  edit.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const answer = await post(form, place.dataset.from, new URLSearchParams({ edit: edit.value })).catch(() => ({}));
      if (answer.pieces) draw(place, answer.pieces);
    }, 500);
  });
}

function singleKeysOn() {
  return localStorage.getItem("desk-keys") !== "off";
}

function prepareDialogs() {
  for (const opener of findAll("[data-opens]")) {
    opener.hidden = false;
    opener.addEventListener("click", (event) => {
      event.preventDefault();
      find(`#${opener.dataset.opens}`).showModal();
    });
  }
  const box = find("#keys-on");
  box.checked = singleKeysOn();
  box.addEventListener("change", () => localStorage.setItem("desk-keys", box.checked ? "on" : "off"));
}

const DIALOG_KEYS = { p: "principles", b: "pause", "?": "help" };

function onKey(event, questions, act) {
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") return act.next();
  if (event.altKey || event.ctrlKey || event.metaKey) return false;
  const dialog = find("dialog[open]");
  if (dialog) return DIALOG_KEYS[event.key] === dialog.id && (dialog.close(), true);
  if (event.target.matches("textarea, input[type='text'], select")) return event.key === "Escape" && (event.target.blur(), true);
  if (event.key === "Enter") return !event.target.closest("a, button, summary") && act.next();
  if (!singleKeysOn()) return false;
  if (DIALOG_KEYS[event.key]) return find(`#${DIALOG_KEYS[event.key]}`).showModal(), true;
  if (event.key === "u") return act.undo();
  if (event.key === "c") return find("#comment").focus(), true;
  const inQuestion = event.target.closest(".question");
  if (inQuestion && event.key === "ArrowDown") return questions.step(1), true;
  if (inQuestion && event.key === "ArrowUp") return questions.step(-1), true;
  return questions.answer(event.key) || questions.jump(event.key);
}

function start(form) {
  const saver = new Saver(form, find("#state"));
  const questions = new Questions(form);
  let timer = 0;
  let leaving = false;
  const soon = (milliseconds) => {
    clearTimeout(timer);
    timer = setTimeout(() => saver.dirty && saver.now(), milliseconds);
  };
  form.addEventListener("change", () => soon(150));
  form.addEventListener("input", () => soon(800));

  const act = {
    next() {
      saver.now().then((saved) => {
        if (!saved) return;
        if (saver.complete) return location.assign("/work");
        const missing = questions.open();
        saver.say(`Not complete yet: ${missing ? "an answer" : "a change of the text or a reason"} is missing.`, true);
        questions.focus(missing);
        missing?.classList.add("missing");
      });
      return true;
    },
    undo() {
      saver.now().then((saved) => {
        if (!saved) return;
        leaving = true;
        form.requestSubmit(find("#undo"));
      });
      return true;
    },
  };
  form.addEventListener("submit", (event) => {
    if (leaving) return;
    event.preventDefault();
    if (event.submitter?.id === "undo") act.undo();
    else act.next();
  });
  document.addEventListener("keydown", (event) => {
    if (!event.isComposing && !event.repeat && onKey(event, questions, act)) event.preventDefault();
  });
  addEventListener("beforeunload", (event) => {
    if (saver.dirty && !leaving) event.preventDefault();
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
  });
  prepareDialogs();
  countSeconds(form);
  watchEdit(form);
}

const form = find("#answer");
if (form) start(form);
