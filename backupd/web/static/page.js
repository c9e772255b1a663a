// Copy buttons, the only thing on the page that needs a script: without it a command is selected by hand.
"use strict";
for (const button of document.querySelectorAll("button.copy")) {
  const code = button.parentElement.querySelector("code");
  const copied = button.parentElement.querySelector("[role=status]");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // not over plain HTTP
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    copied.textContent = "Copied";
    setTimeout(() => { copied.textContent = ""; }, 2000);
  });
}
