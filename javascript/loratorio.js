// Live help in the accordion: which LoRAs the prompt has, and what a step costs with them.
(function () {
    "use strict";

    const NONE = "No LoRA in the prompt: the picture will be the ordinary one.";
    const ONE = "1 LoRA ({names}): {evaluations} model evaluations a step instead of 2.";
    const POOL = "The LoRAs of the pool come on top.";
    const ALONE = "No LoRA in the prompt: only those of the pool take part.";
    const MERGE = "The method merge has no pool.";
    const MORE = "{count} LoRAs ({names}): {evaluations} model evaluations a step instead of 2.";

    function lorasOf(prompt) {
        return [...prompt.matchAll(/<(?:lora|lyco):([^:>]+)(?::([^>]*))?>/g)].map(([, name, rest]) => {
            const parts = (rest ?? "").split(":");
            const named = Object.fromEntries(parts.filter((part) => part.includes("=")).map((part) => part.split("=")));
            const [first, second] = parts.filter((part) => part && !part.includes("="));
            const text = named.te ?? first ?? "1";
            const unet = named.unet ?? second ?? text;
            return {name, strength: text === unet ? unet : `${text}/${unet}`, everywhere: named.lt?.trim().toLowerCase() === "global", used: Number(text) !== 0 || Number(unet) !== 0};
        }).filter((lora) => lora.used);
    }

    // How many times the model is evaluated in a step, the negative prompt's included; global LoRAs are part of the others' evaluations.
    function evaluations(loras, {method, lambda, every}) {
        const count = loras.filter((lora) => !lora.everywhere).length;
        if (count === 0 || method === "switch" || method === "merge") {
            return 2;
        }
        const positive = method === "composite" ? count : count + 1;
        const saves = every > 1 && !(method === "loratorio" && lambda === 1);
        const negative = saves ? (count + every) / every : method === "composite" || lambda === 0 ? count : lambda === 1 ? 1 : count + 1;
        return Number((positive + negative).toFixed(1));
    }

    function describe(loras, settings) {
        const translated = (text) => window.localization?.[text] || text;
        if (settings.pool && settings.method !== "merge" && loras.length === 0) {
            return translated(ALONE);
        }
        const text = translated([NONE, ONE][loras.length] ?? MORE)
            .replace("{count}", loras.length)
            .replace("{evaluations}", evaluations(loras, settings))
            .replace("{names}", () => loras.map((lora) => `${lora.name} ${lora.strength}`).join(", "));
        return settings.pool ? `${text} ${translated(settings.method === "merge" ? MERGE : POOL)}` : text;
    }

    function update(tab) {
        const find = (selector) => gradioApp().querySelector(selector);
        const prompt = find(`#${tab}_prompt textarea`);
        const help = find(`#script_${tab}_loratorio_help .loratorio-live`);
        if (prompt && help) {
            const value = (name, kind, otherwise) => find(`#script_${tab}_loratorio_${name} ${kind}`)?.value || otherwise;
            const text = describe(lorasOf(prompt.value), {
                method: value("method", "input"),
                lambda: Number(value("lam", "input[type=number]", 0.5)),
                every: Number(value("guidance_every", "input[type=number]", 1)),
                pool: value("pool", "textarea", "").replace(/[\s,]/g, ""),
            });
            if (help.textContent !== text) {
                help.textContent = text;
            }
        }
    }

    // Values that the page itself fills in, as presets and pasting do, make no event to wait for.
    setInterval(() => ["txt2img", "img2img"].forEach(update), 300);
})();
