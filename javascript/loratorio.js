// Live help in the accordion: how many LoRAs the prompt has, and what a step costs with them.
(function () {
    "use strict";

    function lorasOf(prompt) {
        return [...prompt.matchAll(/<(?:lora|lyco):([^:>]+)[^>]*>/g)].map((match) => match[1]);
    }

    function describe(loras) {
        if (loras.length === 0) {
            return "No LoRA in the prompt: the picture will be the ordinary one.";
        }
        const evaluations = 2 * (loras.length + 1);
        return `${loras.length} LoRA${loras.length > 1 ? "s" : ""} (${loras.join(", ")}): up to ${evaluations} model evaluations a step instead of 2.`;
    }

    function update(tab) {
        const prompt = gradioApp().querySelector(`#${tab}_prompt textarea`);
        const help = gradioApp().querySelector(`#script_${tab}_loratorio_help .loratorio-live`);
        if (prompt && help) {
            const text = describe(lorasOf(prompt.value));
            if (help.textContent !== text) {
                help.textContent = text;
            }
        }
    }

    onAfterUiUpdate(() => ["txt2img", "img2img"].forEach(update));
})();
