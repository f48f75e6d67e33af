// The theme's switches in the list of pages have no name for a screen reader.
for (const toggle of document.querySelectorAll("summary:has(.toctree-toggle)")) {
  toggle.setAttribute("aria-label", "Pages below");
}
