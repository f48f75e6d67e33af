// The theme's switches in the list of pages have no name for a screen reader.
for (const toggle of document.querySelectorAll("summary:has(.toctree-toggle)")) {
  toggle.setAttribute("aria-label", "Pages below");
}

// A full stop stays on the line of the formula before it.
for (const formula of document.querySelectorAll("span.math")) {
  const text = formula.nextSibling;
  const mark = text?.nodeType === Node.TEXT_NODE ? text.data.match(/^[.,:;?!)]*/)[0] : "";
  formula.append(mark);
  if (mark) text.data = text.data.slice(mark.length);
}

// A formula that is wider than its column gets smaller letters, at most a third smaller.
window.MathJax?.startup?.promise?.then(() => {
  for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
    for (let size = 100; size > 66 && formula.scrollWidth > formula.clientWidth; size -= 3) {
      formula.style.fontSize = `${size}%`;
    }
  }
});
