// Windows of a deformable convolution: the K x K taps of place (y, x) stand at (y + i d, x + j d), i, j in -K/2..K/2, where the
// distance d, 0..BOUND, comes with a second stream, one per pixel. Stride 1; taps outside the image are 0 (its zero point).
// A circular buffer holds the rows that a tap may reach and one that is being written: ROWS = 2 (K/2) BOUND + 2, or H + 1.
// Order of the output, PORTS taps per beat from as many copies of the buffer, per pixel:
//   CHANNEL_OUTER = 1: (c, taps)              for depthwise products
//   CHANNEL_OUTER = 0: REPEAT times (taps, c)  for matrix products
// The reader waits for the pixels that it reads and no others, so near taps do not wait for far rows.
module dp_window_deform #(
  parameter int WIDTH = 8,           // bits of a beat of the image
  parameter int CF = 1,              // beats of a pixel
  parameter int H = 8, W = 8, K = 3,
  parameter int BOUND = 7, DB = 3,   // largest distance and its bits
  parameter int PORTS = 1,           // taps per beat, divides K * K
  parameter int REPEAT = 1,
  parameter bit CHANNEL_OUTER = 1,
  parameter int ROWS = 16,
  parameter RAM = "auto"
) (
  input  logic clk, rst,
  input  logic [DB+WIDTH-1:0] s_data,  // distance above, image below
  input  logic [1:0] s_valid, output logic [1:0] s_ready,
  output logic [PORTS*WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int R = K / 2, REACH = R * BOUND;
  localparam int RL = W * CF, DEPTH = ROWS * RL;        // beats of a row, of the buffer
  localparam int TF = K * K / PORTS;                    // beats of a window's taps
  localparam int AW = DEPTH > 1 ? $clog2(DEPTH) : 1, SW = $clog2(ROWS);
  localparam int YW = $clog2(H + ROWS + REACH + 2) + 1; // signed rows, of the frame at hand
  localparam int XW = $clog2(W + REACH + 1) + 1;        // signed columns
  localparam int LW = $clog2((W + REACH) * CF + CF + 1) + 1; // signed beats within a row
  localparam int TW = TF > 1 ? $clog2(TF) : 1, CW = CF > 1 ? $clog2(CF) : 1, RW = REPEAT > 1 ? $clog2(REPEAT) : 1;
  localparam int FW = $clog2(REACH + 1) + 1;            // how far a tap stands
  localparam int FRAME_SHIFT = H % ROWS;

  // multiples by table, not by multiplier
  wire [ROWS-1:0][AW-1:0] row_place;                    // where a row starts in the buffer
  for (genvar g = 0; g < ROWS; g++) begin : g_row assign row_place[g] = AW'(g * RL); end
  wire [REACH:0][LW-1:0] column_beats;                  // columns in beats
  for (genvar g = 0; g <= REACH; g++) begin : g_column assign column_beats[g] = LW'(g * CF); end

  // ---- writer
  logic [AW-1:0] wp;
  logic [YW-1:0] lead_row;                              // rows of the frame at hand (and the next) that are whole
  logic [LW-1:0] lead_beat;                             // beats of the row being written
  logic signed [YW-1:0] oldest;                         // the first row that the waiting beat may need
  wire push = s_valid[0] && s_ready[0];
  wire end_row = lead_beat == LW'(RL - 1);
  assign s_ready[0] = $signed(lead_row) < oldest + YW'(ROWS);

  // ---- stage 1: which taps, where they are
  logic [TW-1:0] t; logic [CW-1:0] c; logic [RW-1:0] rep;
  logic signed [YW-1:0] y; logic signed [XW-1:0] x; logic signed [LW-1:0] xb; // xb: x in beats
  logic [SW-1:0] slot;                                  // the row of the buffer that holds row y
  wire last_t = t == TW'(TF-1), last_c = c == CW'(CF-1), last_rep = rep == RW'(REPEAT-1);
  wire end_pixel = last_t && last_c && last_rep;
  wire end_line = end_pixel && x == XW'(W-1);
  wire end_frame = end_line && y == YW'(H-1);
  wire [DB-1:0] d = s_data[WIDTH +: DB];

  logic full, ends;                                     // a beat waits to be read; it is the frame's last
  logic go;
  wire load = (!full || go) && s_valid[1];
  assign s_ready[1] = load && end_pixel;

  logic [PORTS-1:0] hit, seen;
  logic [PORTS-1:0][AW-1:0] at;
  logic [PORTS-1:0][YW-1:0] row;
  logic [PORTS-1:0][LW-1:0] beat;
  for (genvar p = 0; p < PORTS; p++) begin : g_port
    wire [TF-1:0][1:0] down, right;                     // direction of the tap: 0 none, 1 forward, 2 back
    wire [TF-1:0][FW-1:0] far_y, far_x;                 // and its distance
    for (genvar f = 0; f < TF; f++) begin : g_tap
      localparam int I = (f * PORTS + p) / K - R, J = (f * PORTS + p) % K - R;
      assign down[f] = I == 0 ? 2'd0 : I > 0 ? 2'd1 : 2'd2;
      assign right[f] = J == 0 ? 2'd0 : J > 0 ? 2'd1 : 2'd2;
      // |I| d for |I| up to 3 without a multiplier
      localparam int AI = I < 0 ? -I : I, AJ = J < 0 ? -J : J;
      assign far_y[f] = (AI % 2 ? FW'(d) : '0) + (AI >= 2 ? FW'({d, 1'b0}) : '0);
      assign far_x[f] = (AJ % 2 ? FW'(d) : '0) + (AJ >= 2 ? FW'({d, 1'b0}) : '0);
    end
    wire [1:0] dy = down[t], dx = right[t];
    wire [FW-1:0] fy = dy == 0 ? '0 : far_y[t], fx = dx == 0 ? '0 : far_x[t];
    wire signed [YW-1:0] ty = dy == 2 ? y - YW'(fy) : y + YW'(fy);
    wire signed [XW-1:0] tx = dx == 2 ? x - XW'(fx) : x + XW'(fx);
    wire signed [LW-1:0] step = column_beats[fx];
    wire signed [LW-1:0] tb = (dx == 2 ? xb - step : xb + step) + LW'(c);
    wire [SW:0] ahead = slot + fy, behind = slot + (SW+1)'(ROWS) - fy;
    wire [SW:0] place = dy == 2 ? behind : ahead;
    wire [SW-1:0] held = SW'(place >= (SW+1)'(ROWS) ? place - (SW+1)'(ROWS) : place);
    always_ff @(posedge clk) if (load) begin
      hit[p] <= ty >= 0 && ty < YW'(H) && tx >= 0 && tx < XW'(W);
      at[p] <= row_place[held] + AW'(tb);
      row[p] <= ty;
      beat[p] <= tb;
    end
    // ---- stage 2: read when the pixel is there
    assign seen[p] = !hit[p] || row[p] < lead_row || (row[p] == lead_row && beat[p] < lead_beat);
    (* ram_style = RAM, no_rw_check *) logic [WIDTH-1:0] mem [DEPTH];
    logic [WIDTH-1:0] q;
    logic in_image;
    always_ff @(posedge clk) begin
      if (push) mem[wp] <= s_data[WIDTH-1:0];
      if (go) begin
        q <= mem[at[p]];
        in_image <= hit[p];
      end
    end
    assign m_data[p*WIDTH +: WIDTH] = in_image ? q : '0;
  end
  assign go = full && &seen && (m_ready || !m_valid);

  wire signed [YW-1:0] y_new = !end_line ? y : end_frame ? '0 : y + 1'b1;
  always_ff @(posedge clk) begin
    if (rst) begin
      wp <= '0; lead_row <= '0; lead_beat <= '0; oldest <= '0;
      t <= '0; c <= '0; rep <= '0; y <= '0; x <= '0; xb <= '0; slot <= '0;
      full <= 1'b0; ends <= 1'b0; m_valid <= 1'b0;
    end else begin
      if (push) begin
        wp <= wp == AW'(DEPTH-1) ? '0 : wp + 1'b1;
        lead_beat <= end_row ? '0 : lead_beat + 1'b1;
      end
      lead_row <= lead_row + YW'(push && end_row) - (go && ends ? YW'(H) : '0);
      if (load) full <= 1'b1; else if (go) full <= 1'b0;
      if (load) begin
        ends <= end_frame;
        oldest <= y > YW'(REACH) ? y - YW'(REACH) : '0;
        if (CHANNEL_OUTER) begin
          t <= last_t ? '0 : t + 1'b1;
          if (last_t) c <= last_c ? '0 : c + 1'b1;
          if (last_t && last_c) rep <= last_rep ? '0 : rep + 1'b1;
        end else begin
          c <= last_c ? '0 : c + 1'b1;
          if (last_c) t <= last_t ? '0 : t + 1'b1;
          if (last_t && last_c) rep <= last_rep ? '0 : rep + 1'b1;
        end
        if (end_pixel) begin
          x <= end_line ? '0 : x + 1'b1;
          xb <= end_line ? '0 : xb + LW'(CF);
        end
        y <= y_new;
        if (end_line) slot <= slot == SW'(ROWS-1) ? '0 : slot + 1'b1;
      end else if (go && ends) oldest <= '0;
      if (m_ready || !m_valid) m_valid <= go;
    end
  end
endmodule
