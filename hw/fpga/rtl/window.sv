// Sliding windows of an image [H, W, CF beats] from a circular buffer of ROWS rows, with padding, stride, dilation and
// nearest upsampling. Order of the output: per output pixel,
//   CHANNEL_OUTER = 0: REPEAT times (ky, kx, c)   for matrix products: each pass feeds one fold of output channels
//   CHANNEL_OUTER = 1: (c, ky, kx)                for depthwise products and pooling
// One beat per cycle. Rows are written while windows of older rows are still read; a row is overwritten only when no window
// needs it any more.
module dp_window #(
  parameter int WIDTH = 8,           // bits of a beat
  parameter int CF = 1,              // beats of a pixel
  parameter int H = 8, W = 8, OH = 8, OW = 8,
  parameter int KY = 3, KX = 3, SY = 1, SX = 1, DY = 1, DX = 1, PT = 1, PL = 1,
  parameter int UY = 1, UX = 1,      // every pixel is read UY x UX times
  parameter int REPEAT = 1,
  parameter bit CHANNEL_OUTER = 0,
  parameter int ROWS = 5,
  parameter logic [WIDTH-1:0] PADDING = '0,
  parameter RAM = "auto"
) (
  input  logic clk, rst,
  input  logic [WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int RL = W * CF;                        // beats of a row
  localparam int DEPTH = ROWS * RL;
  localparam int AW = DEPTH > 1 ? $clog2(DEPTH) : 1;
  localparam int REACH = (H + ROWS + PT + (KY-1)*DY + SY + 1) * RL + (W + PL + (KX-1)*DX + SX + 1) * CF;
  localparam int IW = $clog2(REACH + 1) + 1;         // signed beat indices relative to the frame
  localparam int XW = $clog2(W + PL + OW*SX + (KX-1)*DX + 2) + 1;
  localparam int YW = $clog2(H + PT + OH*SY + (KY-1)*DY + 2) + 1;
  localparam int KYW = KY > 1 ? $clog2(KY) : 1, KXW = KX > 1 ? $clog2(KX) : 1, CW = CF > 1 ? $clog2(CF) : 1;
  localparam int RW = REPEAT > 1 ? $clog2(REPEAT) : 1, OYW = $clog2(OH+1), OXW = $clog2(OW+1);
  localparam int UYW = UY > 1 ? $clog2(UY) : 1, UXW = UX > 1 ? $clog2(UX) : 1;
  typedef logic signed [IW-1:0] index_t;
  typedef logic [AW:0] address_t;

  (* ram_style = RAM, no_rw_check *) logic [WIDTH-1:0] mem [DEPTH];

  function automatic address_t wrap(input address_t a);
    return a >= address_t'(DEPTH) ? a - address_t'(DEPTH) : a;
  endfunction

  // ---- loop counters, innermost last
  logic [OYW-1:0] oy;  logic [OXW-1:0] ox;  logic [UYW-1:0] uy;  logic [UXW-1:0] ux;
  logic [RW-1:0] rep;  logic [KYW-1:0] ky;  logic [KXW-1:0] kx;  logic [CW-1:0] c;
  wire last_c = c == CW'(CF-1), last_kx = kx == KXW'(KX-1), last_ky = ky == KYW'(KY-1), last_rep = rep == RW'(REPEAT-1);
  wire last_ux = ux == UXW'(UX-1), last_uy = uy == UYW'(UY-1);
  wire last_ox = ox == OXW'(OW-1), last_oy = oy == OYW'(OH-1);
  wire end_window = last_kx && last_ky && last_c;

  // ---- where the reader stands: first row and column of the window, row and column of the beat
  logic signed [YW-1:0] y0, y;           // window's first row, this beat's row
  logic signed [XW-1:0] x0, x;
  index_t col0, col;                     // x0 and x in beats: x * CF, kept by addition, no multiplier
  address_t row0, row;                   // their places in the buffer
  index_t first0, first;                 // their indices relative to the frame
  wire hit = y >= 0 && y < YW'(H) && x >= 0 && x < XW'(W);
  index_t lead;                          // beats of this frame (and the next) written so far
  wire index_t need = first + col + index_t'(c);
  wire available = !hit || need < lead;

  wire step = m_ready || !m_valid;       // the output register can take a beat
  wire go = step && available;
  wire frame_end = go && end_window && last_rep && last_ox && last_oy;

  localparam int FRAME_SHIFT = (H % ROWS) * RL;       // how far the next frame's first row lies in the buffer
  localparam int PAD_BACK = ((ROWS - PT % ROWS) % ROWS) * RL;
  localparam int DY_STEP = (DY % ROWS) * RL, SY_STEP = (SY % ROWS) * RL;

  // ---- writer: may fill up to ROWS rows beyond the oldest row still needed
  address_t wp;
  address_t frame_row;                   // place of the frame's row 0
  wire index_t oldest = y0 < 0 ? '0 : y0 > YW'(H) ? index_t'(H*RL) : first0;
  wire push = s_valid && s_ready;
  assign s_ready = lead < oldest + index_t'(DEPTH);

  always_ff @(posedge clk) begin
    if (push) mem[wp[AW-1:0]] <= s_data;
    if (rst) begin
      wp <= '0; lead <= '0;
    end else begin
      if (push) wp <= wp == address_t'(DEPTH-1) ? '0 : wp + 1'b1;
      lead <= lead + index_t'(push) - (frame_end ? index_t'(H*RL) : '0);
    end
  end

  // ---- reader: address, memory, output register
  wire address_t at = row + address_t'(col + index_t'(c));
  logic [WIDTH-1:0] q;
  logic padded;
  assign m_data = padded ? PADDING : q;
  always_ff @(posedge clk) begin
    if (go) begin
      q <= mem[at[AW-1:0]];
      padded <= !hit;
    end
    if (rst) m_valid <= 1'b0;
    else if (step) m_valid <= go;
  end

  // ---- counters
  wire next_c = CHANNEL_OUTER ? last_kx && last_ky : 1'b1;
  wire next_kx = CHANNEL_OUTER ? 1'b1 : last_c;
  wire next_ky = CHANNEL_OUTER ? last_kx : last_c && last_kx;
  wire new_pixel = end_window && last_rep;
  wire next_x0 = new_pixel && (last_ox || last_ux);
  wire next_row = new_pixel && last_ox;
  wire next_y0 = next_row && (last_oy || last_uy);
  wire signed [XW-1:0] x0_new = !next_x0 ? x0 : last_ox ? -XW'(PL) : x0 + XW'(SX);
  wire index_t col0_new = !next_x0 ? col0 : last_ox ? -index_t'(PL*CF) : col0 + index_t'(SX*CF);
  wire signed [YW-1:0] y0_new = !next_y0 ? y0 : last_oy ? -YW'(PT) : y0 + YW'(SY);
  wire address_t frame_new = wrap(frame_row + address_t'(FRAME_SHIFT));
  wire address_t row0_new = !next_y0 ? row0 : last_oy ? wrap(frame_new + address_t'(PAD_BACK)) : wrap(row0 + address_t'(SY_STEP));
  wire index_t first0_new = !next_y0 ? first0 : last_oy ? -index_t'(PT*RL) : first0 + index_t'(SY*RL);
  always_ff @(posedge clk) begin
    if (rst) begin
      oy <= '0; ox <= '0; uy <= '0; ux <= '0; rep <= '0; ky <= '0; kx <= '0; c <= '0;
      x0 <= -XW'(PL); x <= -XW'(PL);
      col0 <= -index_t'(PL*CF); col <= -index_t'(PL*CF);
      y0 <= -YW'(PT); y <= -YW'(PT);
      frame_row <= '0; row0 <= address_t'(PAD_BACK); row <= address_t'(PAD_BACK);
      first0 <= -index_t'(PT*RL); first <= -index_t'(PT*RL);
    end else if (go) begin
      if (next_c) c <= last_c ? '0 : c + 1'b1;
      if (next_kx) kx <= last_kx ? '0 : kx + 1'b1;
      if (next_ky) ky <= last_ky ? '0 : ky + 1'b1;
      if (end_window) begin
        rep <= last_rep ? '0 : rep + 1'b1;
        x <= x0_new; col <= col0_new; y <= y0_new; row <= row0_new; first <= first0_new;
      end else begin
        if (next_kx) begin
          x <= last_kx ? x0 : x + XW'(DX);
          col <= last_kx ? col0 : col + index_t'(DX*CF);
        end
        if (next_ky) begin
          y <= last_ky ? y0 : y + YW'(DY);
          row <= last_ky ? row0 : wrap(row + address_t'(DY_STEP));
          first <= last_ky ? first0 : first + index_t'(DY*RL);
        end
      end
      if (new_pixel) begin
        ux <= last_ux || last_ox ? '0 : ux + 1'b1;
        ox <= last_ox ? '0 : ox + 1'b1;
      end
      if (next_row) begin
        uy <= last_uy || last_oy ? '0 : uy + 1'b1;
        oy <= last_oy ? '0 : oy + 1'b1;
        if (last_oy) frame_row <= frame_new;
      end
      x0 <= x0_new; col0 <= col0_new; y0 <= y0_new; row0 <= row0_new; first0 <= first0_new;
    end
  end
endmodule
