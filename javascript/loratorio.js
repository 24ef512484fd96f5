// Live help in the accordion: which LoRAs the prompt has, and what a step costs with them.
(function () {
    "use strict";

    const NONE = "No LoRA in the prompt: the picture will be the ordinary one.";
    const ONE = "1 LoRA ({names}): {evaluations} model evaluations a step instead of 2.";
    const MORE = "{count} LoRAs ({names}): {evaluations} model evaluations a step instead of 2.";

    function lorasOf(prompt) {
        return [...prompt.matchAll(/<(?:lora|lyco):([^:>]+)(?::([^>]*))?>/g)].map(([, name, rest]) => {
            const parts = (rest ?? "").split(":");
            const named = Object.fromEntries(parts.filter((part) => part.includes("=")).map((part) => part.split("=")));
            const [first, second] = parts.filter((part) => part && !part.includes("="));
            const text = named.te ?? first ?? "1";
            const unet = named.unet ?? second ?? text;
            return {name, strength: text === unet ? unet : `${text}/${unet}`, used: Number(text) !== 0 || Number(unet) !== 0};
        }).filter((lora) => lora.used);
    }

    // How many times the model is evaluated in a step, the negative prompt's included.
    function evaluations(loras, method, lambda) {
        switch (method) {
            case "composite": return 2 * loras;
            case "switch": case "merge": return 2;
            default: return lambda === 1 ? loras + 2 : lambda === 0 ? 2 * loras + 1 : 2 * loras + 2;
        }
    }

    function describe(loras, method, lambda) {
        const text = [NONE, ONE][loras.length] ?? MORE;
        return (window.localization?.[text] || text)
            .replace("{count}", loras.length)
            .replace("{evaluations}", evaluations(loras.length, method, lambda))
            .replace("{names}", () => loras.map((lora) => `${lora.name} ${lora.strength}`).join(", "));
    }

    function update(tab) {
        const find = (selector) => gradioApp().querySelector(selector);
        const prompt = find(`#${tab}_prompt textarea`);
        const help = find(`#script_${tab}_loratorio_help .loratorio-live`);
        if (prompt && help) {
            const method = find(`#script_${tab}_loratorio_method input`)?.value;
            const lambda = find(`#script_${tab}_loratorio_lam input[type=number]`)?.value ?? "";
            const text = describe(lorasOf(prompt.value), method, lambda === "" ? 0.5 : Number(lambda));
            if (help.textContent !== text) {
                help.textContent = text;
            }
        }
    }

    // Values that the page itself fills in, as presets and pasting do, make no event to wait for.
    setInterval(() => ["txt2img", "img2img"].forEach(update), 300);
})();
