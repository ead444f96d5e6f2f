"use strict";
// Maps of how many experts each token got: a column for each call of the network, a row for each block.
const LABEL = { left: 62, right: 52, top: 20, gap: 3, side: 38 };
const NONE = [241, 245, 249], FEW = [191, 219, 254], MANY = [23, 37, 84];

class HeatMap {
  constructor(canvas, where, legend) {
    Object.assign(this, { canvas, where, legend, onPick: () => {} });
    canvas.addEventListener("mousemove", (event) => this.tell(event));
    canvas.addEventListener("mouseleave", () => { where.textContent = " "; });
    canvas.addEventListener("click", (event) => {
      const place = this.placeOf(event);
      if (place) this.onPick(place.row === this.picked?.row && place.column === this.picked?.column ? null : place);
    });
    this.clear([]);
  }

  clear(blocks) {
    this.blocks = blocks;
    this.calls = { conditional: [], unconditional: [] };
    this.half = "conditional";
    this.most = 1;
    this.picked = null;
    this.where.textContent = " ";
  }

  get shown() { return this.calls[this.half]; }

  add(call) {
    const experts = Uint8Array.from(atob(call.experts), (letter) => letter.charCodeAt(0));
    const size = call.rows * call.columns;
    const maps = this.blocks.map((_, row) => experts.subarray(row * size, (row + 1) * size));
    this.calls[call.half].push({ time: call.time, rows: call.rows, columns: call.columns, maps });
    for (const value of experts) this.most = Math.max(this.most, value);
    if (!this.isPlanned) {
      this.isPlanned = true;
      requestAnimationFrame(() => { this.isPlanned = false; this.draw(); });
    }
  }

  draw() {
    const calls = this.shown, context = this.canvas.getContext("2d");
    if (!calls.length) { this.canvas.width = this.canvas.height = 1; return; }
    const scale = Math.max(1, Math.floor(LABEL.side / Math.max(calls[0].rows, calls[0].columns)));
    this.stepX = calls[0].columns * scale + LABEL.gap;
    this.stepY = calls[0].rows * scale + LABEL.gap;
    this.canvas.width = LABEL.left + calls.length * this.stepX + LABEL.right;
    this.canvas.height = LABEL.top + this.blocks.length * this.stepY;
    context.imageSmoothingEnabled = false;
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = "#616e7c";
    context.fillText("mean", this.canvas.width - LABEL.right + 6, 13);
    calls.forEach((call, column) => this.drawCall(context, call, column, scale));
    this.blocks.forEach((block, row) => {
      const y = LABEL.top + (row + 0.5) * this.stepY + 3;
      context.fillText(`block ${block}`, 0, y);
      const mean = calls.reduce((sum, call) => sum + meanOf(call.maps[row]), 0) / calls.length;
      context.fillText(mean.toFixed(2), this.canvas.width - LABEL.right + 6, y);
    });
    this.drawLegend();
  }

  drawCall(context, call, column, scale) {
    const x = LABEL.left + column * this.stepX;
    const every = Math.ceil(44 / this.stepX);
    if (column % every === 0) context.fillText((column ? "" : "t = ") + call.time.toFixed(2), column ? x : x - 22, 13);
    call.maps.forEach((map, row) => {
      const picture = this.pictureOf(map, call);
      const y = LABEL.top + row * this.stepY;
      context.drawImage(picture, x, y, call.columns * scale, call.rows * scale);
      if (this.picked?.row === row && this.picked?.column === column) {
        context.strokeStyle = "#b45309";
        context.lineWidth = 2;
        context.strokeRect(x - 1, y - 1, call.columns * scale + 2, call.rows * scale + 2);
      }
    });
  }

  pictureOf(map, call) {
    const picture = document.createElement("canvas");
    [picture.width, picture.height] = [call.columns, call.rows];
    const pixels = new ImageData(call.columns, call.rows);
    map.forEach((value, place) => pixels.data.set([...this.colourOf(value), 255], 4 * place));
    picture.getContext("2d").putImageData(pixels, 0, 0);
    return picture;
  }

  colourOf(value) {
    if (value === 0) return NONE;
    const share = this.most > 1 ? (value - 1) / (this.most - 1) : 0;
    return FEW.map((from, channel) => Math.round(from + share * (MANY[channel] - from)));
  }

  drawLegend() {
    const step = Math.ceil(this.most / 8);
    this.legend.replaceChildren("experts:");
    for (let value = 0; value <= this.most; value += step) {
      const box = document.createElement("i");
      box.style.background = `rgb(${this.colourOf(value)})`;
      this.legend.append(box, String(value));
    }
  }

  placeOf(event) {
    const edge = this.canvas.getBoundingClientRect();
    const x = (event.clientX - edge.left) - LABEL.left, y = (event.clientY - edge.top) - LABEL.top;
    const column = Math.floor(x / this.stepX), row = Math.floor(y / this.stepY);
    const call = this.shown[column];
    return call && row >= 0 && row < this.blocks.length ? { column, row, call, map: call.maps[row] } : null;
  }

  tell(event) {
    const place = this.placeOf(event);
    this.where.textContent = place
      ? `block ${this.blocks[place.row]}, t = ${place.call.time.toFixed(3)}: ${meanOf(place.map).toFixed(2)} experts a token`
      : " ";
  }
}

function meanOf(map) {
  return map.reduce((sum, value) => sum + value, 0) / Math.max(1, map.length);
}
