// The accordion's group "Places": which LoRA may be where, and a mask to be painted in the LoRAs' colours.
(function () {
    "use strict";

    const HINT = "Pick a LoRA and paint where it may be. One without a place may be everywhere. Colours are the maps'.";
    const NOBODY = "nobody";
    const FILL = "fill";
    const CLEAR = "no mask";
    const LOAD = "load an image";
    const TAKE = "take over the last weight map";
    const NONE = "No weight map has been made yet.";
    const AWAY = "The mask of this picture is not at hand: load the image that was saved beside it, or choose no mask.";

    const FILLING = "the chosen LoRA may be everywhere";
    const CLEARING = "forgets what is painted";
    const LOADING = "painted elsewhere, in the LoRAs' colours";
    const TAKING = "of the last picture with weight maps: where each LoRA won";
    const TITLES = {[FILL]: FILLING, [CLEAR]: CLEARING, [LOAD]: LOADING, [TAKE]: TAKING};

    const route = "./loratorio/v1/places";
    const longest = 256; // pixels of the mask's longer edge
    const milliseconds = 400;
    const untilAskedAgain = 5000; // milliseconds; the image may be large
    const black = "#000000";
    const translated = (text) => window.localization?.[text] || text;

    class Places {
        constructor(tab) {
            this.tab = tab;
            this.places = [];
            this.chosen = black;
            this.picked = false; // by the user; until then it is the first LoRA's
            this.problems = {}; // by what has it: the prompt, or the mask
        }

        find(name) {
            return gradioApp().querySelector(`#script_${this.tab}_loratorio_${name}`);
        }

        get box() {
            return this.find("mask")?.querySelector("textarea, input");
        }

        look() {
            const root = this.find("places")?.querySelector(".loratorio-places");
            const prompt = gradioApp().querySelector(`#${this.tab}_prompt textarea`);
            if (!root || !prompt || !this.box) {
                return;
            }
            if (root !== this.root) {
                this.build(root);
            }
            if (this.seen !== prompt.value) {
                this.seen = prompt.value; // asked at the next look, if nobody types on until then
            } else if (this.prompt !== prompt.value) {
                this.prompt = prompt.value;
                this.ask(prompt.value);
            }
            if (this.written !== this.box.value) {
                this.show(this.box.value);
            }
            const [width, height] = this.size();
            if (!this.written && (this.canvas.width !== width || this.canvas.height !== height)) {
                this.blank(); // nothing is painted yet, and the picture is to have another shape
            }
            if (this.counted !== this.written) {
                this.counted = this.written;
                this.count(this.written);
            }
        }

        build(root) {
            this.root = root;
            this.find("mask").style.display = "none";
            root.replaceChildren();
            const make = (kind, className, text, parent = root) => {
                const element = document.createElement(kind);
                element.className = `loratorio-${className}`;
                element.textContent = text;
                return parent.appendChild(element);
            };
            make("div", "places-hint", translated(HINT)).style.opacity = "0.7";
            this.swatches = make("div", "places-swatches", "");
            this.swatches.style.cssText = "display: flex; flex-wrap: wrap; gap: 4px; margin: 4px 0";
            this.canvas = make("canvas", "places-canvas", "");
            this.canvas.style.cssText =
                "width: 320px; max-width: 100%; image-rendering: pixelated; border: 1px solid grey; " +
                "cursor: crosshair; touch-action: none";
            const buttons = make("div", "places-buttons", "");
            buttons.style.cssText = "display: flex; flex-wrap: wrap; gap: 4px; margin: 4px 0";
            this.button = (text, name, act, parent = buttons) => {
                const button = make("button", `places-${name}`, translated(text), parent);
                button.type = "button";
                button.title = translated(TITLES[text] ?? text); // else the WebUI gives its own buttons' titles
                button.style.cssText = "border: 1px solid grey; border-radius: 4px; padding: 2px 8px";
                button.addEventListener("click", act);
                return button;
            };
            const fill = () => this.paper.fillRect(0, 0, this.canvas.width, this.canvas.height);
            this.button(FILL, "fill", () => this.changed(fill));
            this.button(TAKE, "take", () => this.take());
            this.button(LOAD, "load", () => this.file.click());
            this.button(CLEAR, "clear", () => this.write(""));
            this.file = make("input", "places-file", "");
            this.file.type = "file";
            this.file.accept = "image/*";
            this.file.style.display = "none";
            this.file.addEventListener("change", () => this.load(this.file.files[0]));
            this.message = make("div", "places-message", "");
            this.paintable();
            this.blank();
            this.written = undefined;
            this.counted = "";
            this.choose();
        }

        // The paper has no soft brushes: every pixel is to be one LoRA's colour.
        get paper() {
            const paper = this.canvas.getContext("2d", {willReadFrequently: true});
            paper.imageSmoothingEnabled = false;
            paper.fillStyle = this.chosen;
            return paper;
        }

        // Of the canvas, in the shape of the picture to come.
        size() {
            const box = (name) => gradioApp().querySelector(`#${this.tab}_${name} input[type=number]`);
            const edges = ["width", "height"].map((name) => Number(box(name)?.value) || 1);
            return edges.map((edge) => Math.max(1, Math.round(longest * edge / Math.max(...edges))));
        }

        blank() {
            [this.canvas.width, this.canvas.height] = this.size();
            this.paper.clearRect(0, 0, this.canvas.width, this.canvas.height);
            this.outline();
        }

        paintable() {
            const at = (event) => {
                const shown = this.canvas.getBoundingClientRect();
                return [
                    Math.floor((event.clientX - shown.left) / shown.width * this.canvas.width),
                    Math.floor((event.clientY - shown.top) / shown.height * this.canvas.height),
                ];
            };
            const dab = ([x, y]) => {
                const brush = Math.max(1, Math.round(Math.max(this.canvas.width, this.canvas.height) / 16));
                this.paper.fillRect(x - (brush >> 1), y - (brush >> 1), brush, brush);
            };
            let last = null;
            this.canvas.addEventListener("pointerdown", (event) => {
                this.canvas.setPointerCapture(event.pointerId);
                last = at(event);
                dab(last);
            });
            this.canvas.addEventListener("pointermove", (event) => {
                if (!last) {
                    return;
                }
                const now = at(event);
                const steps = Math.max(1, ...now.map((place, axis) => Math.abs(place - last[axis])));
                for (let step = 1; step <= steps; step++) {
                    dab(now.map((place, axis) => Math.round(last[axis] + (place - last[axis]) * step / steps)));
                }
                last = now;
            });
            this.canvas.addEventListener("pointerup", () => {
                last = null;
                this.changed(() => undefined);
            });
        }

        changed(act) {
            act();
            this.write(this.canvas.toDataURL("image/png"), false);
        }

        // Into the text box, whose value a generation gets.
        write(value, anew = true) {
            this.box.value = value;
            this.box.dispatchEvent(new Event("input", {bubbles: true}));
            this.written = value;
            this.tell("mask", "");
            if (anew) {
                this.show(value);
            }
        }

        tell(whose, problem) {
            this.problems[whose] = problem;
            this.message.textContent = Object.values(this.problems).filter((told) => told).join("\n");
        }

        // What something else has written: a pasted picture's mask, or none.
        show(value) {
            this.written = value;
            this.tell("mask", value.startsWith("sha256-") ? translated(AWAY) : "");
            if (!value || value.startsWith("sha256-")) {
                this.blank();
                return;
            }
            const image = new Image();
            image.onload = () => {
                this.blank();
                this.paper.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
            };
            image.src = value.startsWith("data:") ? value : `data:image/png;base64,${value}`;
        }

        load(file) {
            const reader = new FileReader();
            reader.onload = () => this.write(reader.result);
            reader.readAsDataURL(file);
            this.file.value = "";
        }

        // Whose places the mask has, which the price depends on.
        async count(mask) {
            let answer = {painted: [], problem: ""};
            if (mask && !mask.startsWith("sha256-")) {
                const headers = {"Content-Type": "application/json"};
                const body = JSON.stringify({mask});
                answer = await this.fetched(`${route}/painted`, {method: "POST", headers, body});
            }
            if (mask !== this.written) {
                return; // painted on meanwhile
            }
            if (!answer) {
                setTimeout(() => {
                    this.counted = undefined;
                }, untilAskedAgain);
                return;
            }
            this.root.dataset.painted = answer.painted.join(",");
            this.tell("mask", answer.problem || this.problems.mask);
        }

        async take() {
            const {mask} = await this.fetched(`${route}/last`) ?? {mask: ""};
            if (mask) {
                this.write(`data:image/png;base64,${mask}`);
            } else {
                this.tell("mask", translated(NONE));
            }
        }

        async fetched(address, options) {
            try {
                const response = await fetch(address, options);
                return response.ok ? await response.json() : null;
            } catch {
                return null; // the server is gone, or has not begun to answer yet
            }
        }

        async ask(prompt) {
            const answer = await this.fetched(`${route}?${new URLSearchParams({prompt})}`);
            if (!answer || prompt !== this.prompt) {
                this.prompt = answer ? this.prompt : undefined;
                return;
            }
            this.places = answer.places;
            this.tell("prompt", answer.problem);
            this.choose();
            this.outline();
        }

        // A button for each LoRA in its colour, and one for nobody.
        choose() {
            const offered = [...this.places.filter((place) => place.colour), {name: translated(NOBODY), colour: black}];
            if (!this.picked || !offered.some((place) => place.colour === this.chosen)) {
                this.chosen = offered[0].colour;
            }
            this.swatches.replaceChildren();
            for (const {name, colour} of offered) {
                const swatch = this.button(name, "swatch", () => {
                    this.chosen = colour;
                    this.picked = true;
                    this.choose();
                }, this.swatches);
                swatch.dataset.colour = colour;
                swatch.style.background = colour;
                swatch.style.color = colour === black ? "white" : "black";
                swatch.style.outline = colour === this.chosen ? "3px solid var(--body-text-color, grey)" : "none";
                swatch.style.outlineOffset = "1px";
            }
        }

        // Regions of tags, as a picture behind the canvas.
        outline() {
            const boxes = this.places.flatMap(({colour, boxes}) => boxes.map(([left, top, right, bottom]) =>
                `<rect x="${left * 100}" y="${top * 100}" ` +
                `width="${(right - left) * 100}" height="${(bottom - top) * 100}" ` +
                `fill="${colour}" fill-opacity="0.25" stroke="${colour}" stroke-width="2"/>`));
            const frame = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" preserveAspectRatio="none"';
            const picture = `<svg ${frame}>${boxes.join("")}</svg>`;
            this.canvas.style.background = `0 0 / 100% 100% url("data:image/svg+xml,${encodeURIComponent(picture)}")`;
            this.canvas.dataset.boxes = boxes.length;
        }
    }

    const tabs = ["txt2img", "img2img"].map((tab) => new Places(tab));
    setInterval(() => tabs.forEach((places) => places.look()), milliseconds);
})();
