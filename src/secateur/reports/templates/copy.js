for (const box of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(box.dataset.copy);
  const button = box.querySelector("button");
  const told = box.querySelector("[role=status]");
  const byHand = () => {
    const range = document.createRange();
    range.selectNodeContents(source);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  };
  box.hidden = false;
  button.addEventListener("click", async () => {
    const text = source.textContent;
    try {
      await navigator.clipboard.writeText(text);
      told.textContent = "copied";
    } catch {
      source.closest("details").open = true;
      byHand();
      told.textContent = document.execCommand("copy") ? "copied" : "selected: copy it with the keyboard";
    }
  });
}
