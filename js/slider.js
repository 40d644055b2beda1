// Two pictures of one size over each other and a line to drag between them, by pointer or arrow keys.
import { element } from "./frontend.js";

/**
 * Returns {element, show}. show(left, right): each {url, label}, or undefined for none.
 * A picture that is gone (a restart empties ComfyUI's temporary folder) leaves no broken icon; gone() is then called.
 */
export function makeSlider(name, gone) {
  const sides = ["left", "right"].map((side) => {
    const image = element("img", { alt: "", draggable: false, hidden: true });
    image.onload = () => (image.hidden = false);
    image.onerror = gone;
    return { image, label: element(`span.${side}`) };
  });
  const [left, right] = sides;
  const line = element("i");
  const move = () => {
    line.style.left = `${range.value}%`;
    left.image.style.clipPath = `inset(0 ${100 - range.value}% 0 0)`;
  };
  const range = element("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, oninput: move, "aria-label": name });
  move();
  const show = (...given) => {
    sides.forEach(({ image, label }, index) => {
      const side = given[index];
      image.hidden = true;
      if (side) image.src = side.url;
      else image.removeAttribute("src");
      label.textContent = side?.label ?? "";
      label.hidden = !side;
    });
  };
  return { element: element("div.realisr-slider", right.image, left.image, range, line, left.label, right.label), show };
}
