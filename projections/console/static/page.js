// The time bar and regions that keep themselves up to date. Pages work without this.

const PAUSE_MILLISECONDS = 250;

/** Put what the server has for `url` in place of this page's parts that can change. */
async function show(url, ids = null, signal = undefined) {
  const response = await fetch(url, { headers: { Accept: "text/html" }, signal });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  if (response.redirected && new URL(response.url).pathname !== location.pathname) {
    location.assign(response.url);
    return;
  }
  const found = ids ?? [...document.querySelectorAll("[data-swap]")].map((each) => each.id);
  for (const id of found) {
    const fresh = page.getElementById(id);
    if (fresh) document.getElementById(id)?.replaceWith(document.adoptNode(fresh));
  }
  if (!ids) document.title = page.title;
}

function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** A slider over all sizes of the journal: moving it shows the page as of the size it stands at. */
class TimeBar extends HTMLElement {
  connectedCallback() {
    this.samples = JSON.parse(this.dataset.samples);
    this.slider = this.querySelector("#slider");
    this.slider.addEventListener("input", () => this.tell());
    this.slider.addEventListener("change", () => this.wait());
    this.shown = location.search;
    window.addEventListener("popstate", () => {
      if (location.search !== this.shown) this.go(location.href);
    });
  }

  /** The time of a size, between the two samples around it; milliseconds since 1970. */
  timeOf(size) {
    let before = this.samples[0];
    for (const sample of this.samples) {
      if (sample[0] >= size) {
        const share = (size - before[0]) / Math.max(1, sample[0] - before[0]);
        return 1000 * (before[1] + share * (sample[1] - before[1]));
      }
      before = sample;
    }
    return before ? 1000 * before[1] : null;
  }

  tell() {
    const size = Number(this.slider.value);
    const time = this.timeOf(size);
    const shown = time === null ? "" : new Date(time).toISOString().replace("T", " ");
    const text = `size ${size.toLocaleString("en-US")}`;
    this.slider.setAttribute("aria-valuetext", shown ? `${text}, ${shown.slice(0, 16)} UTC` : text);
    this.querySelector("[data-size]").textContent = size.toLocaleString("en-US");
    this.querySelector("[data-time]").textContent = shown ? `${shown.slice(0, 19)} UTC` : "";
  }

  wait() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.move(), PAUSE_MILLISECONDS);
  }

  move() {
    const url = new URL(location.href);
    for (const name of ["cursor", "before"]) url.searchParams.delete(name);
    if (this.slider.value === this.slider.max) url.searchParams.delete("at");
    else url.searchParams.set("at", this.slider.value);
    history.pushState(null, "", url);
    this.go(url);
  }

  async go(url) {
    this.asked?.abort();
    this.asked = new AbortController();
    this.shown = location.search;
    document.body.setAttribute("aria-busy", "true");
    try {
      await show(url, null, this.asked.signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      announce("The service does not answer: what is shown is not of this moment");
      throw error;
    }
    document.body.removeAttribute("aria-busy");
    const moment = document.getElementById("moment").dataset;
    this.slider.max = moment.max;
    this.slider.value = moment.value;
    this.slider.setAttribute("aria-valuetext", moment.text);
    announce(`Showing ${moment.text}`);
  }
}

/** A region that is asked for again every `data-seconds`; 0 means that nothing more will change. */
class LiveRegion extends HTMLElement {
  connectedCallback() {
    const seconds = Number(this.dataset.seconds);
    if (seconds) this.timer = setInterval(() => this.refresh(), 1000 * seconds);
  }

  disconnectedCallback() {
    clearInterval(this.timer);
  }

  async refresh() {
    // Who has got to a button in it must not lose it.
    if (document.hidden || this.contains(document.activeElement)) return;
    const said = this.dataset.said;
    await show(location.href, [this.id]);
    const now = document.getElementById(this.id)?.dataset.said;
    if (now && now !== said) announce(now);
  }
}

customElements.define("time-bar", TimeBar);
customElements.define("live-region", LiveRegion);
