// The upload page without waiting: several files, dropped or chosen, one request each, with progress.
// Without this script the form does the same for one file.
"use strict";

const form = document.getElementById("send");
const input = document.getElementById("file");
const drop = document.getElementById("drop");
const list = document.getElementById("progress");
const status = document.getElementById("status");
const button = form.querySelector("button");
const chosen = document.getElementById("chosen");
const invitation = [...chosen.childNodes];

document.body.classList.add("scripted");
input.multiple = true;

function showChoice() {
  const { files } = input;
  if (!files.length) chosen.replaceChildren(...invitation);
  else chosen.textContent = files.length === 1 ? files[0].name : `${files.length} files chosen`;
}

function show(file) {
  const row = document.createElement("li");
  const name = document.createElement("span");
  name.className = "name";
  name.dir = "auto";
  name.textContent = file.name;
  const bar = document.createElement("progress");
  bar.max = file.size || 1;
  bar.value = 0;
  bar.setAttribute("aria-label", file.name);
  const state = document.createElement("span");
  state.className = "facts";
  row.append(name, bar, state);
  list.append(row);
  return { bar, state };
}

function send(file, { bar, state }) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    const finish = (ok, text) => {
      bar.remove();
      state.textContent = text;
      state.classList.add(ok ? "sent" : "failed");
      resolve(ok);
    };
    request.upload.onprogress = (event) => { bar.value = event.loaded; };
    request.onload = () => {
      if (request.status === 201) {
        finish(true, "Sent");
        return;
      }
      let detail = "Not sent";
      try {
        detail = JSON.parse(request.responseText).detail || detail;
      } catch { /* not a problem document: the short text has to do */ }
      finish(false, detail);
    };
    request.onerror = () => finish(false, "The connection broke");
    request.open("POST", form.action);
    request.setRequestHeader("Accept", "application/json");
    const body = new FormData();
    body.append("file", file);
    request.send(body);
  });
}

async function sendAll(files) {
  if (!files.length) return;
  button.disabled = true;
  status.textContent = "Sending…";
  const rows = [...files].map((file) => [file, show(file)]);
  let arrived = 0;
  for (const [file, row] of rows) {
    if (await send(file, row)) arrived += 1;
  }
  status.textContent = `${arrived} of ${rows.length} ${rows.length === 1 ? "file" : "files"} sent`;
  form.reset();
  showChoice();
  button.disabled = false;
}

input.addEventListener("change", showChoice);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  sendAll(input.files);
});
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  drop.addEventListener(kind, () => drop.classList.remove("over"));
}
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!button.disabled) sendAll(event.dataTransfer.files);
});
