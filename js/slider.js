// Two pictures of one size over each other and a line to drag between them, by pointer or arrow keys.
import { addStyle, element } from "./frontend.js";

addStyle(`
    .realisr-slider { position: relative; overflow: hidden; background: #000; }
    .realisr-slider img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; user-select: none; }
    .realisr-slider img[hidden] { display: none; }
    .realisr-slider i { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
    .realisr-slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
    .realisr-slider input:focus-visible + i { background: #38bdf8; }
    .realisr-slider span { position: absolute; bottom: 4px; max-width: 45%; padding: 0 5px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; border-radius: 3px; color: #fff; background: #000a; pointer-events: none; }
    .realisr-slider span.right { right: 4px; }
    .realisr-slider span.left { left: 4px; }
`);

/**
 * Returns {element, show}. show(left, right): each {url, label}, or undefined for none.
 * A picture that is gone (a restart empties ComfyUI's temporary folder) leaves no broken icon; gone() is then called.
 */
export function makeSlider(name, gone = () => {}) {
    const images = [0, 1].map(() => element("img", { alt: "", draggable: false, hidden: true }));
    const labels = ["left", "right"].map((className) => element("span", { className }));
    const line = element("i");
    const range = element("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": name });
    const move = () => {
        line.style.left = `${range.value}%`;
        images[0].style.clipPath = `inset(0 ${100 - range.value}% 0 0)`;
    };
    range.addEventListener("input", move);
    for (const image of images) {
        image.onload = () => (image.hidden = false);
        image.onerror = () => {
            image.hidden = true;
            gone();
        };
    }
    move();
    const show = (...sides) => {
        sides.forEach((side, index) => {
            images[index].hidden = true;
            if (side) images[index].src = side.url;
            else images[index].removeAttribute("src");
            labels[index].textContent = side?.label ?? "";
            labels[index].hidden = !side;
        });
    };
    // The right picture lies under the left one.
    return { element: element("div", { className: "realisr-slider" }, images[1], images[0], range, line, ...labels), show };
}
