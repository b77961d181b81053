/* The console's pages work without this. With it they show times in the viewer's zone, open spans in place,
   copy a trace's id, and renew themselves. */
(() => {
  'use strict';

  /* In the language of the page, as the viewer's own variant of it writes times. */
  const written = document.documentElement.lang;
  const language = /^[a-z]{2,8}(-[a-z\d]{2,8})*$/i.test(written) ? written : 'en';
  const locales = [...navigator.languages.filter((each) => each.split('-')[0] === language.split('-')[0]), language];
  const clock = { hour: '2-digit', minute: '2-digit' };
  const precise = { ...clock, second: '2-digit' };
  const formats = {
    clock: new Intl.DateTimeFormat(locales, clock),
    step: new Intl.DateTimeFormat(locales, precise),
    time: new Intl.DateTimeFormat(locales, { ...precise, fractionalSecondDigits: 3 }),
    datetime: new Intl.DateTimeFormat(locales, { ...precise, day: 'numeric', month: 'short' }),
    full: new Intl.DateTimeFormat(locales, { dateStyle: 'full', timeStyle: 'long' }),
  };

  const showTimes = (root) => {
    for (const element of root.querySelectorAll('time[data-otel-time]')) {
      const at = new Date(element.dateTime);
      const format = formats[element.dataset.otelTime];
      if (Number.isNaN(at.getTime()) || !format) continue;
      element.textContent = format.format(at);
      element.title = formats.full.format(at);
    }
    /* What is said of a step of a chart begins with its time: "09:30:10: 3 / s". */
    for (const element of root.querySelectorAll('title[data-otel-at]')) {
      const said = element.textContent;
      const at = new Date(element.dataset.otelAt);
      if (Number.isNaN(at.getTime())) continue;
      element.textContent = formats.step.format(at) + said.slice(said.indexOf(': '));
      element.removeAttribute('data-otel-at');
    }
  };

  /* What this script says is written, translated, on the console's outermost element. */
  const texts = document.querySelector('.otel')?.dataset ?? {};

  /* The server's own, escaped markup, as nodes. */
  const fetchNodes = async (address) => {
    const response = await fetch(address, { credentials: 'same-origin', headers: { 'X-Requested-With': 'fetch' } });
    if (response.redirected || !response.ok) throw new Error(String(response.status));
    const body = new DOMParser().parseFromString(await response.text(), 'text/html').body;
    const nodes = document.createElement('div');
    nodes.append(...body.childNodes);
    showTimes(nodes);
    return nodes;
  };

  /* Spans. */

  const rowOf = (id) => document.querySelector(`[data-otel-span="${CSS.escape(id)}"]`);

  /* The address names the open span beside the filter of the spans. */
  const keepAddress = (id) => {
    const address = new URL(location.href);
    address.searchParams.delete('span');
    if (id) address.searchParams.set('span', id);
    history.replaceState(null, '', address.pathname + address.search + (id ? `#s-${id}` : ''));
  };

  const toggle = async (row, open) => {
    const item = row.parentElement;
    const shown = item.querySelector(':scope > .otel-details');
    const wanted = open ?? !shown;
    if (shown && !wanted) {
      shown.remove();
      row.setAttribute('aria-expanded', 'false');
      keepAddress('');
    } else if (!shown && wanted) {
      const id = row.dataset.otelSpan;
      row.setAttribute('aria-expanded', 'true');
      try {
        const nodes = await fetchNodes(`?span=${encodeURIComponent(id)}&part=span`);
        if (row.getAttribute('aria-expanded') === 'true' && !item.querySelector(':scope > .otel-details')) {
          item.append(...nodes.childNodes);
        }
        keepAddress(id);
      } catch {
        /* Signed out, or the trace was pushed out: the page itself says which. */
        location.assign(row.href);
      }
    }
  };

  const reveal = (row) => {
    row.closest('details')?.setAttribute('open', '');
    row.scrollIntoView({ block: 'center' });
    row.focus({ preventScroll: true });
  };

  const isPlain = (event) => event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;

  document.addEventListener('click', (event) => {
    if (!(event.target instanceof Element) || !isPlain(event)) return;
    const row = event.target.closest('[data-otel-span]');
    if (row) {
      event.preventDefault();
      toggle(row);
      return;
    }
    const opener = event.target.closest('[data-otel-open]');
    const target = opener && rowOf(opener.dataset.otelOpen);
    if (target) {
      event.preventDefault();
      reveal(target);
      toggle(target, true);
      return;
    }
    const copier = event.target.closest('[data-otel-copy]');
    if (copier) copy(copier);
  });

  /* Opens or closes a row; where that is done already, goes into the group or out of it. */
  const turn = (row, opening) => {
    const group = row.closest('details');
    if (row.matches('summary')) {
      if (opening && group.open) group.querySelector('[data-otel-span]')?.focus();
      else group.open = opening;
    } else if (!opening && group && row.getAttribute('aria-expanded') !== 'true') {
      group.querySelector('summary').focus();
    } else {
      toggle(row, opening);
    }
  };

  document.addEventListener('keydown', (event) => {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (!(event.target instanceof Element) || !event.target.matches('.otel-span')) return;
    if (event.key === 'Escape' && event.target.matches('[aria-expanded="true"]')) {
      toggle(event.target, false);
      return;
    }
    /* Forward opens, backward closes: a group of equal queries, or a span. In a page from right to left, swapped. */
    const isRtl = getComputedStyle(event.target).direction === 'rtl';
    const opening = { [isRtl ? 'ArrowLeft' : 'ArrowRight']: true, [isRtl ? 'ArrowRight' : 'ArrowLeft']: false }[event.key];
    if (opening !== undefined) {
      event.preventDefault();
      turn(event.target, opening);
      return;
    }
    if (!(event.key in steps) && event.key !== 'Home' && event.key !== 'End') return;
    const rows = [...document.querySelectorAll('.otel-span')].filter((row) => row.getClientRects().length);
    const last = rows.length - 1;
    const to = { Home: 0, End: last }[event.key] ?? rows.indexOf(event.target) + steps[event.key];
    event.preventDefault();
    rows[Math.min(last, Math.max(0, to))]?.focus();
  });

  /* Copying. */

  const copy = async (button) => {
    const source = document.getElementById(button.dataset.otelCopy);
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      /* Not allowed, or no secure page: select it, so that the keyboard's copy does. */
      getSelection().selectAllChildren(source);
      if (!document.execCommand('copy')) return;
    }
    button.textContent = texts.otelCopied;
    setTimeout(() => { button.textContent = label; }, 2000);
  };

  for (const button of document.querySelectorAll('[data-otel-copy]')) button.hidden = false;

  /* Renewing. */

  const keepFresh = (region) => {
    const bar = document.createElement('p');
    const state = document.createElement('span');
    const pause = document.createElement('button');
    let paused = false;
    bar.className = 'otel-fresh';
    pause.type = 'button';
    pause.className = 'otel-small-button';
    const say = () => {
      pause.textContent = paused ? texts.otelResume : texts.otelPause;
      const renewed = texts.otelRenewed.replace('{seconds}', region.dataset.otelEvery);
      state.textContent = paused ? texts.otelPaused : renewed;
    };
    pause.addEventListener('click', () => { paused = !paused; say(); });
    say();
    bar.append(state, ' ', pause);
    region.before(bar);
    let before = '';
    const isBusy = () => paused || document.hidden || String(getSelection()) !== '';
    const renew = async () => {
      if (!isBusy()) {
        try {
          const nodes = await fetchNodes(region.dataset.otelRefresh);
          /* What has begun meanwhile counts as well. */
          if (!isBusy() && nodes.innerHTML !== before) {
            before = nodes.innerHTML;
            const focused = region.contains(document.activeElement) && document.activeElement.getAttribute('href');
            region.replaceChildren(...nodes.childNodes);
            if (focused) region.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
          }
        } catch {
          state.textContent = texts.otelStopped;
          pause.remove();
          return;
        }
      }
      setTimeout(renew, region.dataset.otelEvery * 1000);
    };
    setTimeout(renew, region.dataset.otelEvery * 1000);
  };

  /* A trace that has just ended arrives a moment later: the link on an error page is clicked faster. */
  const awaitTrace = (section) => {
    let left = 5;
    const look = async () => {
      const response = await fetch(location.href, { credentials: 'same-origin' }).catch(() => null);
      if (response?.ok) location.reload();
      else if (--left) setTimeout(look, section.dataset.otelRetry * 1000);
    };
    setTimeout(look, section.dataset.otelRetry * 1000);
  };

  showTimes(document);
  document.querySelectorAll('[data-otel-retry]').forEach(awaitTrace);
  document.querySelectorAll('[data-otel-refresh]').forEach(keepFresh);
})();
