// Live updates: the server sends the parts of the page that have changed. Without this script, the page is complete.
"use strict";

(() => {
  const live = document.getElementById("live");
  const path = location.pathname.replace(/\/$/, "");
  const url = `${path}/events${location.search}`;
  const longestPause = 30000;
  let pause = 1000;

  const say = (text, state) => {
    if (live.textContent !== text) {
      live.textContent = text;
      live.className = `live ${state}`;
    }
  };

  // A link that had the focus, or a text that is selected, must survive the replacement of what is around it.
  const isSelectedIn = (element) => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && element.contains(selection.anchorNode);
  };

  // Ages change by themselves, as in rendering.py. They are by the server's clock, which may differ from that here.
  const units = [[90, 1, "s"], [90 * 60, 60, "min"], [48 * 3600, 3600, "h"], [Infinity, 86400, "d"]];
  let ahead = 0;

  const setClock = (now) => {
    ahead = Date.parse(now) - Date.now();
  };

  const showAges = () => {
    for (const element of document.querySelectorAll("time[datetime]")) {
      const seconds = Math.abs(Date.now() + ahead - Date.parse(element.dateTime)) / 1000;
      const [, length, unit] = units.find(([limit]) => seconds < limit);
      const age = `${Math.floor(seconds / length)} ${unit}`;
      if (element.textContent !== age && !isSelectedIn(element)) {
        element.textContent = age;
      }
    }
  };

  const waiting = new Map();
  let pressed = false;

  const replace = (id, html) => {
    const old = document.getElementById(id);
    waiting.delete(id);
    if (!old) {
      return;
    }
    if (pressed || isSelectedIn(old)) {
      waiting.set(id, html);
      return;
    }
    const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const parsed = new DOMParser().parseFromString(html, "text/html").getElementById(id);
    if (!parsed) {
      return;
    }
    old.replaceWith(parsed);
    if (focused !== null) {
      const again = [...parsed.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused);
      if (again) {
        again.focus({ preventScroll: true });
      }
    }
  };

  const catchUp = () => {
    for (const [id, html] of [...waiting]) {
      replace(id, html);
    }
  };

  // A link under a pressed button must be there until the click.
  const setPressed = (value) => () => {
    pressed = value;
    if (!value) {
      setTimeout(catchUp, 0);
    }
  };
  document.addEventListener("pointerdown", setPressed(true));
  document.addEventListener("pointerup", setPressed(false));
  document.addEventListener("pointercancel", setPressed(false));
  document.addEventListener("dragend", setPressed(false));
  document.addEventListener("selectionchange", catchUp);

  let source = null;
  let timer = 0;

  const disconnect = () => {
    clearTimeout(timer);
    if (source) {
      source.close();
    }
    source = null;
  };

  const connect = () => {
    disconnect();
    source = new EventSource(url);
    source.addEventListener("open", () => {
      pause = 1000;
      say("Live", "connected");
    });
    source.addEventListener("fragment", (event) => {
      const part = JSON.parse(event.data);
      setClock(part.now);
      replace(part.id, part.html);
    });
    source.addEventListener("error", () => {
      say("Not connected, trying again", "lost");
      // After an error of the network the browser connects again by itself; after an error status it does not.
      if (source && source.readyState === EventSource.CLOSED) {
        timer = setTimeout(connect, pause);
        pause = Math.min(2 * pause, longestPause);
      }
    });
  };

  // A page that nobody sees costs the daemon nothing, and leaves its place to others.
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  addEventListener("pagehide", disconnect);
  addEventListener("pageshow", (event) => {
    if (event.persisted) {
      connect();
    }
  });
  setClock(document.body.dataset.now);
  setInterval(showAges, 1000);
  if (!document.hidden) {
    connect();
  }
})();
