// A picture of several panels is wider than the others: on a phone it scrolls, see styles.css.
document.addEventListener("DOMContentLoaded", () => {
  for (const picture of document.querySelectorAll(".cell_output img")) {
    const mark = () => picture.classList.toggle("wide", picture.naturalWidth > 700);
    picture.complete ? mark() : picture.addEventListener("load", mark);
  }
});
