"use strict";
// Numbers, times and elements. Everything that comes from the bundle becomes text (textContent), never markup.

const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const two = (n) => String(n).padStart(2, "0");

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// A length of time in seconds, as a person says it.
function span(seconds) {
  if (!seconds) return "0 s";
  if (seconds < 1e-3) return `${+(seconds * 1e6).toPrecision(3)} µs`;
  if (seconds < 1) return `${+(seconds * 1e3).toPrecision(3)} ms`;
  if (seconds < 60) return `${+seconds.toFixed(2)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${+(seconds % 60).toFixed(1)} s`.replace(" 0 s", "");
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`.replace(" 0 min", "");
  const days = Math.floor(seconds / 86400), hours = Math.floor(seconds % 86400 / 3600);
  return days < 1e6 ? `${number(days)} d ${hours} h`.replace(" 0 h", "") : `${days.toPrecision(3)} d`;
}

// Seconds since zero as a day, or as the time of that day; `step` says how fine.
function elapsed(seconds, step) {
  if (seconds < 0) return `-${elapsed(-seconds, step)}`;
  if (seconds >= 1e12) return `${(seconds / 86400).toPrecision(4)} d`;
  const days = Math.floor(seconds / 86400), rest = seconds - days * 86400;
  const digits = Math.min(9, Math.max(0, Math.ceil(-Math.log10(step))));
  const clock = `${two(Math.floor(rest / 3600))}:${two(Math.floor(rest % 3600 / 60))}`;
  const fine = step < 60 ? `:${(rest % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0")}` : "";
  return step >= 86400 ? `day ${number(days)}` : `${clock}${fine}`;
}

// The end of the year 9999, up to which times can be shown as dates.
const LAST_DATE = 253402300800;

// An event time to the nanosecond: a date in UTC where it is meant as one, else the seconds as they are.
function moment(run, secs, nanos) {
  const part = nanos ? `.${String(nanos).padStart(9, "0")}`.replace(/0+$/, "") : "";
  if (!run.dates || secs >= LAST_DATE) return `${secs}${part} s`;
  return `${new Date(Number(secs) * 1000).toISOString().slice(0, 19).replace("T", " ")}${part} UTC`;
}

const at = (run, i) => moment(run, run.secs[i], run.nanos[i]);
