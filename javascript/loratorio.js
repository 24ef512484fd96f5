// Live help in the accordion: which LoRAs the prompt has, what a step costs with them, and what is wrong with them. The
// server tells all of it.
(function () {
    "use strict";

    const NONE = "No LoRA in the prompt: the picture will be the ordinary one.";
    const ONE = "1 LoRA ({names}): {evaluations} model evaluations a step (ordinary: 2).";
    const POOL = "The LoRAs of the pool come on top.";
    const ALONE = "No LoRA in the prompt: only those of the pool take part.";
    const NAMED = "Those of the pool are named by the prompt.";
    const UNNAMED = "The prompt names no LoRA of the pool.";
    const MERGE = "The method merge has no pool.";
    const MORE = "{count} LoRAs ({names}): {evaluations} model evaluations a step (ordinary: 2).";
    const OFF = "Off, so that the picture will be the ordinary one. Ticked: {told}";
    const TWICE = "Twice in the prompt: {names}. Keep one tag of each, unless you mean both.";
    const UNKNOWN = "Not among the WebUI's LoRAs: {names}. Check the name, or refresh the list if a file is new.";
    const UNSUITED = "Made for another kind of model: {names}. Choose another checkpoint, or other LoRAs.";
    const PRICE = "model evaluations a step; a picture without LoRAtorio takes 2";

    const route = "./loratorio/v1/price";
    const milliseconds = {between_looks: 300, for_an_answer: 5000, until_asked_again: 5000};

    // Of each tab the latest query: seen, asked, and answered; with the answer, which is null where there is none.
    const tabs = {txt2img: {}, img2img: {}};

    const translated = (text) => window.localization?.[text] || text;

    // A LoRA as it takes part: its strength, what it is for all others, and its region, as its tag has them.
    function named({name, strength, role, where}) {
        return [name, strength, ...(role === "global" ? [role] : []), ...(where ? [where] : [])].join(" ");
    }

    function warn({problems, unreadable}) {
        const texts = {twice: TWICE, unknown: UNKNOWN, unsuited: UNSUITED};
        const found = Object.entries(texts).filter(([problem]) => problems[problem]).map(([problem, text]) =>
            translated(text).replace("{names}", () => problems[problem].join(", ")));
        return [...found, ...(unreadable ? [unreadable] : [])].join("\n");
    }

    // What a step costs with each of the choices, beside its name.
    function priced(tab, prices) {
        for (const input of gradioApp().querySelectorAll(`#script_${tab}_loratorio_mode input[type=radio]`)) {
            const label = input.closest("label");
            const price = prices?.[input.value];
            const text = price === undefined ? "" : `${Number(price.toFixed(1))}`;
            if ((label.dataset.price ?? "") !== text) {
                label.dataset.price = text;
                label.title = text && `${text} ${translated(PRICE)}`;
            }
        }
    }

    function describe({loras, evaluations, pool}) {
        if (pool === "added" && loras.length === 0) {
            return translated(ALONE);
        }
        const text = translated([NONE, ONE][loras.length] ?? MORE)
            .replace("{count}", loras.length)
            .replace("{evaluations}", Number(evaluations.toFixed(1)))
            .replace("{names}", () => loras.map(named).join(", "));
        if (pool === "named") {
            return `${text} ${translated(loras.some(({pooled}) => pooled) ? NAMED : UNNAMED)}`;
        }
        return pool === "none" ? text : `${text} ${translated(pool === "ignored" ? MERGE : POOL)}`;
    }

    // The WebUI's own check box, in the accordion's header.
    function isOff(tab) {
        return gradioApp().querySelector(`#script_${tab}_loratorio_enabled-visible-checkbox`)?.checked === false;
    }

    // What is to be asked: the prompt, and the settings that the label names. One that is empty has its default.
    function queryOf(tab, prompt, names) {
        const settings = {};
        for (const name of names) {
            const inputs = ":is(textarea, input:not([type=range], [type=radio]), input:checked)";
            const control = `#script_${tab}_loratorio_${name} ${inputs}`;
            const value = gradioApp().querySelector(control)?.value;
            if (value) {
                settings[name] = value;
            }
        }
        // Of a mask only whose places it has: the image may be large.
        const painted = gradioApp().querySelector(`#script_${tab}_loratorio_places .loratorio-places`)?.dataset.painted;
        return new URLSearchParams({prompt, settings: JSON.stringify(settings), ...painted && {painted}}).toString();
    }

    async function ask(state, query) {
        state.asked = query;
        let answer = null;
        try {
            const signal = AbortSignal.timeout(milliseconds.for_an_answer);
            const response = await fetch(`${route}?${query}`, {signal});
            answer = response.ok ? await response.json() : null;
        } catch {
            // No answer: the server is gone, or has not begun to answer yet.
        }
        if (state.asked === query) { // else something else has been asked since
            Object.assign(state, {answer, answered: query});
            if (!answer) {
                setTimeout(() => state.asked === query && delete state.asked, milliseconds.until_asked_again);
            }
        }
    }

    // Gradio 3 opens its accordions by the mouse only; gradio 4's headers are buttons.
    function keyboard(tab) {
        const headers = `[id^=script_${tab}_loratorio_group_] > div.label-wrap:not([tabindex])`;
        for (const header of gradioApp().querySelectorAll(headers)) {
            header.tabIndex = 0;
            header.setAttribute("role", "button");
            header.addEventListener("keydown", (event) => {
                if (event.target === header && ["Enter", " "].includes(event.key)) {
                    event.preventDefault();
                    header.click();
                }
            });
        }
    }

    function show(element, text) {
        if (element.textContent !== text) {
            element.textContent = text;
        }
    }

    function update(tab) {
        const state = tabs[tab];
        const prompt = gradioApp().querySelector(`#${tab}_prompt textarea`);
        const help = gradioApp().querySelector(`#script_${tab}_loratorio_help .loratorio-live`);
        if (!prompt || !help) {
            return;
        }
        const query = queryOf(tab, prompt.value, help.dataset.settings.split(" "));
        if (query !== state.query) {
            state.query = query; // asked at the next look, if nobody types on until then
        } else if (query !== state.asked) {
            ask(state, query);
        } else if (query !== state.answered) {
            state.answer = null; // what is known is of another query, and the answer is late
        }
        const told = state.answer ? describe(state.answer) : "";
        const costs = state.answer?.loras.length > 0 || state.answer?.pool === "added";
        show(help, costs && isOff(tab) ? translated(OFF).replace("{told}", () => told) : told);
        show(help.parentElement.querySelector(".loratorio-warning"), state.answer ? warn(state.answer) : "");
        priced(tab, state.answer?.presets);
        keyboard(tab);
    }

    // Values that the page itself fills in, as presets and pasting do, make no event to wait for.
    setInterval(() => Object.keys(tabs).forEach(update), milliseconds.between_looks);
})();
