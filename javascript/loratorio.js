// Live help in the accordion: which LoRAs the prompt has, and what a step costs with them.
(function () {
    "use strict";

    function lorasOf(prompt) {
        return [...prompt.matchAll(/<(?:lora|lyco):([^:>]+)((?::[^>]*)?)>/g)]
            .map((match) => ({name: match[1], strength: match[2].split(":").filter((part) => part && !part.includes("="))[0] ?? "1"}))
            .filter((lora) => Number(lora.strength) !== 0);
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
        if (loras.length === 0) {
            return "No LoRA in the prompt: the picture will be the ordinary one.";
        }
        const names = loras.map((lora) => `${lora.name} ${lora.strength}`).join(", ");
        return `${loras.length} LoRA${loras.length > 1 ? "s" : ""} (${names}): `
            + `${evaluations(loras.length, method, lambda)} model evaluations a step instead of 2.`;
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

    onAfterUiUpdate(() => ["txt2img", "img2img"].forEach(update));
})();
